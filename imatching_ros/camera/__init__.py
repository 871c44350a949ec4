"""Camera models, calibration files, image decoding, rectification."""
