"""The finished potential: its file, the ASE calculator, the teacher of other processes."""
