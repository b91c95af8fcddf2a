"""DeepSEED (Li and Fan 2020), a detector of nodules in 3D, to compare the box's candidates with."""
