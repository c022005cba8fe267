"""Figures: how they are reckoned, and the pages that they are written on."""
