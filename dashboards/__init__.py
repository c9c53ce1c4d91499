"""The web dashboard: what trainwatch says of the runs below a folder, live, on this machine only."""
