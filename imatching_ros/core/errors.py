"""The errors that a user can cause. Each message says what was given, what was expected and what to do."""


class ImatchingError(Exception):
    """Base of every expected error: the command line prints it as one line and exits with code 1."""


class ConfigError(ImatchingError):
    """A configuration key that does not exist, or a value outside its bounds."""


class SourceError(ImatchingError):
    """A recording or camera stream that cannot be read, or that contradicts itself."""


class WeightsError(ImatchingError):
    """A weights file that is missing, corrupt, not finite, or made for another network."""


class MatcherError(ImatchingError):
    """Images or points that a matcher cannot take: too small, of several sizes, or in colour."""


class CameraError(ImatchingError):
    """A camera calibration that is missing, impossible, or disagrees with the images."""


class BundleError(ImatchingError):
    """A bundle adjustment window whose arrays contradict each other or whose poses are not finite."""
