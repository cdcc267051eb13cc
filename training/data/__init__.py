"""Recorded datasets as training sees them: LeRobot, HDF5 and folders of clips behind one `Episode`, read only."""
