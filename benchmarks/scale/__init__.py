"""How far it goes: one machine beside clusters of workers, and what a larger cluster would take."""
