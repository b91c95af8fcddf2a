"""SAM with transfer learning, beside the paper's networks."""
