"""Types, settings, errors, geometry and the reprojection residual: what everything else is built from."""
