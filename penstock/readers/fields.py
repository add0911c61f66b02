"""The fields that readers share: one name, one meaning, whatever the dataset calls it."""

from penstock.schema import Field

IMAGE = Field(
    name="image",
    dtype="uint8",
    shape=(None, None, 3),
    axes="H W C",
    kind="image",
    meaning="RGB, 0..255, at its own size",
)
PATH = Field(name="path", dtype="str", kind="text", meaning="file that the picture comes from, relative to the root")
IMAGE_ID = Field(name="image_id", dtype="str", kind="text", meaning="the dataset's id of the picture, zeros kept")
ANNOTATION_ID = Field(
    name="annotation_id", dtype="int64", kind="number", meaning="the dataset's own number of the annotation"
)
BOX = Field(
    name="box",
    dtype="float32",
    shape=(4,),
    axes="4",
    kind="box",
    meaning="XYWH in pixels of the image, corner counted from 0, right = x + w exclusive",
)
MASK = Field(
    name="mask", dtype="uint8", shape=(None, None), axes="H W", kind="mask", meaning="0 or 1, of the image's size"
)
IDS = Field(
    name="ids",
    dtype="int64",
    shape=(None, None),
    axes="H W",
    kind="ids",
    meaning="object id per pixel, of the image's size",
)
AREA = Field(name="area", dtype="float32", kind="number", meaning="pixels of the mask, as the dataset states it")
CATEGORY = Field(name="category", dtype="str", kind="text", meaning="name of the class, empty where there is none")
CATEGORY_ID = Field(name="category_id", dtype="int64", kind="number", meaning="the dataset's own number of the class")
ISCROWD = Field(name="iscrowd", dtype="bool", kind="flag", meaning="one mask over a crowd of objects")
VIDEO = Field(name="video", dtype="str", kind="text", meaning="name of the video or sequence")
OBJECT = Field(name="object", dtype="str", kind="text", meaning="id of the object within its video")
FRAME = Field(name="frame", dtype="int32", kind="number", meaning="position of the picture in its video, from 0")
TIME = Field(
    name="time",
    dtype="float64",
    kind="number",
    meaning="seconds from the first frame; NaN where no rate is known",
    allows_nan=True,
)
VALID = Field(name="valid", dtype="bool", kind="flag", meaning="there is an annotation, of positive width and height")
VISIBLE = Field(
    name="visible", dtype="bool", kind="flag", meaning="valid, and no flag of the dataset says hidden or out of view"
)
