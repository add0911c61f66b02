"""Saves tracking samples as folders that a person can look at and a network can be trained on: `penstock sequence save`."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import orjson
import xxhash

from penstock.draws import Draw, Frames, TrackSample, TrackTable
from penstock.errors import UsageError
from penstock.jobs import Job
from penstock.launch.local import Inline, Local
from penstock.report import Budget, Report
from penstock.schema import Field, Record, Schema
from penstock.sequence_config import SequenceConfig, open_named
from penstock.sequence_fields import annotations_of, origin_of, saved_record, saved_schema
from penstock.sequence_folder import (
    IMAGES,
    MASKS,
    RAW,
    RAW_MASKS,
    ROLES,
    encode_mask,
    encode_pixels,
    frames_of,
    picture_name,
    record_to_json,
    sequence_files,
)
from penstock.sequence_sink import SequenceSink, sequence_key
from penstock.source import Candidate, Problem, Source
from penstock.stages.sequence import CroppedSample, Rejected
from penstock.stages.sequence_record import SampleShape, first_accepted
from penstock.store.disk import Disk
from penstock.store.output import refused_if_unwritable
from penstock.store.provenance import provenance
from penstock.track_samples import TrackSamples
from penstock.track_tables import track_tables
from penstock.tracking import Tracking
from penstock.tracking_pool import table_digest

COMMAND = "sequence save"
RETRY_BITS = 40
"""A draw whose crops are rejected is drawn again as step + (retry << 40): no other sequence has that step."""
_STEP = Schema([Field(name="step", dtype="int64", kind="number", meaning="position of the sampler")])


def save_sequences(
    config: SequenceConfig,
    *,
    sources: Sequence[Source] | None = None,
    on_progress: Callable[[Report], None] = lambda report: None,
    stop: Callable[[], str] = lambda: "",
    disk: Disk | None = None,
) -> Report:
    """Saves `config.num_sequences` samples as `output/seq_000001_<timestamp>` and so on.

    Sequence n is what the sampler draws at step n - 1, whoever computes it and whenever: the folders have the same bytes on
    any number of workers and after any number of interruptions. What is there is left as it is; a larger `num_sequences`
    adds sequences.

    Args:
        config: see `SequenceConfig`.
        sources: opened sources, in place of those that the configuration names.
        on_progress: called after every sequence with the report so far.
        stop: asked between sequences; a non-empty answer ends the run after those in hand.
        disk: the write seam; tests replace it.

    Raises:
        UsageError: wrong settings, a missing source, an output that is something else's; nothing was touched.
        RecipeMismatch: the output was made with another configuration; the message names each difference.
        BadData: the sampler finds no sample at all; the message names source, sequence and cause.
        BudgetExceeded: more sequences failed than allowed.
        OutputFull: no room; what was saved is kept.
    """
    stage = SaveSequences(config, sources)
    stage.setup("cpu")
    stage.draw(0)
    report = Report(command=COMMAND, output=str(config.output))
    save = config.save
    budget = Budget.parse(save.max_failures) if save.max_failures is not None else None
    report.budget = budget or report.budget
    report.notes["config"] = config.to_json()
    sink = _open_sink(config, stage, disk)
    report.notes["timestamp"] = stage.timestamp = sink.timestamp
    workers = min(_workers(save.workers), config.num_sequences)
    job = Job(
        offers=StepOffers(config.num_sequences),
        stage=stage,
        sink=sink,
        launcher=Local(workers, timeout_s=save.timeout_s) if workers else Inline(),
        report=report,
        budget=budget,
        retry_failed=save.retry_failed,
        on_progress=on_progress,
        stop=stop,
    )
    job.run()
    report.notes["rejected"] = sink.rejections()
    return report


@dataclass
class StepOffers:
    """The steps 0..count-1, as what a job works on (see `penstock.source.Offers`)."""

    count: int
    schema: Schema = _STEP
    problems: list[Problem] = field(default_factory=list)

    def candidates(self) -> Iterator[Candidate]:
        """One for each sequence, in order."""
        return (Candidate(key=sequence_key(step), index=step) for step in range(self.count))

    def __getitem__(self, index: int) -> Record:
        return {"step": np.array(index, np.int64)}


class SaveSequences:
    """The stage: a step in, the files of a sequence out (path in its folder -> (N,) uint8).

    Args:
        config: see `SequenceConfig`.
        sources: opened sources; None opens those of the configuration, anew in each worker.
    """

    name = "save-sequences"
    version = 1
    bitwise = True
    batch_size = 1
    schema = Schema([])

    def __init__(self, config: SequenceConfig, sources: Sequence[Source] | None = None) -> None:
        self.config = config
        self.timestamp = ""
        self._given = None if sources is None else list(sources)
        self._samples: TrackSamples | None = None
        self._tracking: Tracking | None = None
        self._schema = Schema([])
        self._recipe: str | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_samples": None, "_tracking": None}

    def setup(self, device: str) -> None:
        """Opens the sources and their tables.

        Raises:
            UsageError: they are others than when the run began.
        """
        if self._samples is not None:
            return
        config, weights = self.config, self.config.weights
        if self._given is None:
            sources, weights = open_named(config)
        else:
            sources = self._given
        tables = track_tables(sources)
        self._tracking = open_tracking(config, tables, weights)
        self._samples = TrackSamples(sources, tables)
        self._schema = self.saved_schema()
        recipe = self._digest()
        if self._recipe not in (None, recipe):
            raise UsageError(
                f"{', '.join(config.sources)}: the annotations changed while the run was going on; run again"
            )
        self._recipe = recipe

    def sequence_counts(self) -> dict[str, int]:
        """Number of sequences of each source that there are to draw from."""
        samples, _ = self._opened()
        return {table.name: len(table) for table in samples.tables}

    def identity(self) -> dict[str, object]:
        """What must be the same for all sequences of a folder."""
        samples, tracking = self._opened()
        config = self.config
        kept = ("save_images", "pictures", "image_format", "jpeg_quality", "save_format", "max_retries")
        save = asdict(config.save)
        sources = {str(number): _identity_of(table) for number, table in enumerate(samples.tables)}
        return {
            "stage": self.name,
            "version": self.version,
            "sampler": tracking.identity().partition("(")[0],
            "sources": sources,
            "shares": tracking.shares.tolist(),
            "draw": asdict(config.draw),
            "seed": config.seed,
            "crops": None if config.save.pictures == "raw" else config.crops.identity(),
            "save": {name: save[name] for name in kept},
        }

    def roots(self) -> dict[str, str]:
        """Name of each table -> root of its source; recorded, not compared."""
        samples, _ = self._opened()
        pairs = zip(samples.tables, samples.sources, strict=True)
        return {table.name: str(getattr(source, "root", "")) for table, source in pairs}

    def draw(self, step: int) -> Draw:
        """What the sampler draws at a step."""
        return self._opened()[1].draw(step)

    def __call__(self, records: list[Record]) -> list[Record]:
        """The files of each step's sequence.

        Raises:
            BadData: a picture cannot be read, or the crops of every draw were rejected.
        """
        return [self._save(int(np.asarray(record["step"]))) for record in records]

    def saved_schema(self) -> Schema:
        """The fields of what is saved."""
        draw = self.config.draw
        shape = SampleShape(
            num_template=self._opened()[1].num_template,
            num_search=draw.num_search,
            num_backward=draw.min_interval,
            num_forward=draw.future_steps,
        )
        return saved_schema(self.config.save, self.config.crops, shape)

    def _save(self, step: int) -> Record:
        samples, config = self._opened()[0], self.config
        drawn: list[TrackSample] = []

        def read(retry: int) -> TrackSample:
            drawn.append(samples.read(self.draw(step + (retry << RETRY_BITS))))
            return drawn[-1]

        if config.save.pictures == "raw":
            return self._files(step, read(0), None, [])
        cropped, rejected = first_accepted(read, config.crops, max_attempts=config.save.max_retries + 1)
        refused = [_rejection(one, sample) for one, sample in zip(rejected, drawn, strict=False)]
        return self._files(step, drawn[-1], cropped, refused)

    def _files(
        self, step: int, sample: TrackSample, cropped: CroppedSample | None, rejections: list[dict[str, object]]
    ) -> Record:
        save, key = self.config.save, sequence_key(step)
        record = saved_record(sample, cropped, save)
        files = sequence_files(
            metadata={
                "sequence_id": key,
                "timestamp": self.timestamp,
                "dataset": sample.source,
                "test_class": sample.category,
                "is_video_dataset": sample.is_video,
                "template_frame_ids": frames_of(sample.template.frames),
                "search_frame_ids": frames_of(sample.search.frames),
                "gt_frame_ids_backward": frames_of(sample.backward.frames),
                "gt_frame_ids_forward": frames_of(sample.forward.frames),
            },
            annotations=annotations_of(sample, cropped),
            provenance={
                "recipe": self._recipe,
                "step": step,
                "retry": len(rejections),
                "rejections": rejections,
                "pictures": save.pictures,
                "image_format": save.image_format,
                "record": record_to_json(record, self._schema),
                "origin": origin_of(sample),
            },
            pictures=self._pictures(sample, cropped) if save.save_images else {},
            save_format=save.save_format,
        )
        return {name: np.frombuffer(content, np.uint8) for name, content in files.items()}

    def _pictures(self, sample: TrackSample, cropped: CroppedSample | None) -> dict[str, bytes]:
        save = self.config.save
        found: dict[str, bytes] = {}
        if cropped is not None:
            for role, crops in zip(ROLES, (cropped.template, cropped.search), strict=True):
                for number, pixels in enumerate(crops.images):
                    encoded = encode_pixels(pixels, save.image_format, save.jpeg_quality)
                    found[picture_name(role, number, save.image_format)] = encoded
                found |= _masks(role, crops.masks, MASKS)
        if save.pictures != "crops":
            folder, masks = (RAW, RAW_MASKS) if save.pictures == "both" else (IMAGES, MASKS)
            numbers = (sample.draw.source, sample.draw.search_source)
            for role, frames, source in zip(ROLES, (sample.template, sample.search), numbers, strict=True):
                for number in range(len(frames.images)):
                    name = picture_name(role, number, save.image_format, folder=folder)
                    found[name] = self._raw(frames, number, source)
                found |= _masks(role, frames.masks, masks)
        return found

    def _raw(self, frames: Frames, number: int, source: int) -> bytes:
        """The source's own file where it is a JPEG and one is wanted; or the pixels, encoded."""
        save, pixels = self.config.save, frames.images[number]
        own = None
        if save.image_format == "jpg":
            height, width, _ = pixels.shape
            own = self._opened()[0].picture_file(source, frames.paths[number], (height, width))
        return encode_pixels(pixels, save.image_format, save.jpeg_quality) if own is None else own

    def _opened(self) -> tuple[TrackSamples, Tracking]:
        if self._samples is None or self._tracking is None:
            raise UsageError("SaveSequences: call setup() first")
        return self._samples, self._tracking

    def _digest(self) -> str:
        return xxhash.xxh3_128_hexdigest(orjson.dumps(self.identity(), option=orjson.OPT_SORT_KEYS))


def open_tracking(config: SequenceConfig, tables: Sequence[TrackTable], weights: Sequence[float] | None) -> Tracking:
    """The sampler of a configuration over these tables."""
    return Tracking(tables, weights=weights, seed=config.seed, **asdict(config.draw))


def _identity_of(table: TrackTable) -> dict[str, object]:
    """Name, and hashes of all that draws and boxes depend on."""
    boxes = xxhash.xxh3_128(np.ascontiguousarray(table.boxes, "<f4").data)
    boxes.update(np.ascontiguousarray(table.frames, "<i4").data)
    return {"name": table.name, "rows": table_digest(table), "boxes": boxes.hexdigest()}


def _rejection(rejected: Rejected, sample: TrackSample) -> dict[str, object]:
    return {"key": sample.draw.key, "source": sample.source, "sequence": sample.sequence, **vars(rejected)}


def _masks(role: str, masks: Sequence[np.ndarray] | np.ndarray, folder: str) -> dict[str, bytes]:
    """Masks as PNGs; none where they are empty, as those of sources without masks are."""
    if not any(mask.any() for mask in masks):
        return {}
    return {picture_name(role, number, "png", folder=folder): encode_mask(mask) for number, mask in enumerate(masks)}


def _open_sink(config: SequenceConfig, stage: SaveSequences, disk: Disk | None) -> SequenceSink:
    with refused_if_unwritable(config.output):
        return SequenceSink(
            config.output,
            identity=stage.identity(),
            schema=stage.saved_schema(),
            timestamp=config.save.timestamp,
            now=time.strftime("%Y%m%d_%H%M%S"),
            provenance=provenance(config.to_json(), roots=stage.roots(), sequences=stage.sequence_counts()),
            durability=config.save.durability,
            disk=disk,
        )


def _workers(asked: int) -> int:
    return len(os.sched_getaffinity(0)) if asked < 0 else asked
