"""What a run will need before it is launched: memory, time, disk and money. Needs no torch; docs/planner.md."""
