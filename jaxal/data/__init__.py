"""Data: from outside and back (numpy alone), and on the device: structures, neighbors, training set, queue."""
