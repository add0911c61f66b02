"""OpenCV as `cv2`; where it is not installed, the error names the extra. Import it inside a function where that may be late."""

from penstock.errors import MissingExtra

try:
    import cv2 as cv2
except ImportError as error:
    raise MissingExtra("opencv-python-headless", "images", "working on pictures and masks") from error
