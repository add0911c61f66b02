"""The seed's three scripts that save sequences, and `save_sequences_from_sampler`. Their command line, hence their output."""

import sys
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from penstock.compat.processing import Compose, Normalize, TIMProcessing, ToTensor
from penstock.compat.sequence import SequenceSaver
from penstock.compat.tracking import Processing, TimingTrackingSampler
from penstock.errors import MissingExtra, PenstockError, UsageError
from penstock.sequence_folder import SaveFormat
from penstock.settings import KEYS, load_settings

try:
    from torch.utils.data import DataLoader, Dataset
except ImportError as error:
    raise MissingExtra("torch", "train", "saving sequences from a sampler") from error

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
READERS = {
    "lasot": "lasot_dir",
    "got10k": "got10k_dir",
    "trackingnet": "trackingnet_dir",
    "coco-instances": "coco_dir",
    "imagenet-vid": "imagenet_dir",
    "lasot-lmdb": "lasot_lmdb_dir",
    "got10k-lmdb": "got10k_lmdb_dir",
    "trackingnet-lmdb": "trackingnet_lmdb_dir",
    "coco-lmdb": "coco_lmdb_dir",
    "imagenet-vid-lmdb": "imagenet_lmdb_dir",
}
"""Readers of the original's training sets, and the settings that give their folders; all that are set are used."""
LOCAL_PY = "lib/train/admin/local.py"


def save_sequences_from_sampler(
    sampler: Dataset[Any],
    num_sequences: int = 100,
    save_dir: Path | str = "saved_sequences",
    *,
    save_images: bool = True,
    save_format: SaveFormat = "json",
    num_workers: int = 0,
    saver: SequenceSaver | None = None,
) -> list[str]:
    """Saves the first samples of a sampler; boxes are in pixels of the saved pictures.

    Args:
        sampler: a `TimingTrackingSampler`, or any dataset of such samples.
        num_sequences: samples to save; the sampler must have as many.
        save_dir: see `SequenceSaver`.
        save_images: see `SequenceSaver.save_sequence_data`.
        save_format: the same.
        num_workers: of the DataLoader.
        saver: used in the place of one made for `save_dir`.

    Returns:
        Paths of the folders. A sample that could not be saved is logged and stands in `saver.failures`.

    Raises:
        UsageError: more sequences are asked for than the sampler has.
        BadData, OutputRefused, OutputFull: as `SequenceSaver.save_batch_sequences`.
    """
    if isinstance(sampler, Sized) and num_sequences > len(sampler):
        raise UsageError(f"num_sequences: the sampler has {len(sampler)} samples, asked for {num_sequences}")
    loader = DataLoader(sampler, batch_size=1, shuffle=False, num_workers=num_workers)
    saver = saver or SequenceSaver(save_dir)
    return saver.save_batch_sequences(loader, num_sequences, save_images, save_format)


@dataclass(frozen=True)
class ScriptConfig:
    """What the scripts take as flags."""

    source: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ()
    """READER:PATH?option=value, several if wanted; by default all tracking datasets of the settings."""
    weights: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = ()
    """One per source, how often it is drawn; by default all alike."""
    num_sequences: int = 100
    """Sequences to save."""
    save_dir: Path = Path("saved_sequences")
    """Folder that they go to."""
    num_template_frames: int = 1
    """Template frames per sequence."""
    num_search_frames: int = 1
    """Search frames per sequence."""
    max_gap: int = 200
    """Frames between template and search frame."""
    min_interval: int = 80
    """Steps of the trajectory before the search frame."""
    future_steps: int = 1
    """Steps of the trajectory from the search frame on."""
    seed: int = 0
    """Of all random numbers."""
    num_workers: int = 0
    """Processes that read pictures."""
    save_images: bool = True
    """Whether pictures are saved."""
    save_format: Literal["json", "pickle"] = "json"
    """Of metadata and annotations."""
    image_format: Literal["jpg", "png"] = "jpg"
    """Of pictures; png is exact."""
    timestamp: str | None = None
    """YYYYmmdd_HHMMSS in names and metadata; by default now."""
    settings: Path | None = field(default=None)
    """The settings file; by default penstock.toml is looked for."""

    def sampler(self, processing: Processing) -> TimingTrackingSampler:
        """Over the sources named, or those of the settings.

        Raises:
            UsageError: there is none, or they cannot be drawn from.
        """
        sources = self.source or configured_sources(self.settings)
        return TimingTrackingSampler(
            sources,
            self.weights or (1.0,) * len(sources),
            self.num_sequences,
            self.max_gap,
            self.num_search_frames,
            num_template_frames=self.num_template_frames,
            processing=processing,
            min_interval=self.min_interval,
            future_steps=self.future_steps,
            seed=self.seed,
        )

    def saver(self) -> SequenceSaver:
        """For `save_dir`."""
        return SequenceSaver(self.save_dir, timestamp=self.timestamp, image_format=self.image_format)


def whole_pictures() -> Processing:
    """Whole pictures, normalised."""
    return Compose([ToTensor(), Normalize(mean=MEAN, std=STD)])


def trained_crops() -> Processing:
    """The crops that the original's tracker is trained on, at its shipped numbers."""
    return TIMProcessing(
        {"template": 2.0, "search": 4.0},
        {"template": 128, "search": 256},
        {"template": 0.0, "search": 3.0},
        {"template": 0.0, "search": 0.25},
    )


def configured_sources(settings_file: Path | None = None) -> tuple[str, ...]:
    """The tracking datasets that the settings name, as texts of sources.

    Raises:
        UsageError: there is none; the message says what to set, and where an old local.py lies.
    """
    loaded = load_settings(settings_file)
    found = tuple(f"{reader}:" for reader, key in READERS.items() if getattr(loaded.settings, key))
    if found and settings_file is not None:
        found = tuple(f"{text}{getattr(loaded.settings, READERS[text[:-1]])}" for text in found)
    if not found:
        variables = ", ".join(KEYS[key].variable for key in list(READERS.values())[:5])
        old = f" {LOCAL_PY} is here: `penstock settings import {LOCAL_PY}`." if Path(LOCAL_PY).exists() else ""
        raise UsageError(
            f"no tracking dataset is set. Give --source READER:PATH (lasot:/data/LaSOT), or lasot_dir, got10k_dir, "
            f"trackingnet_dir, coco_dir, imagenet_dir in the table [paths] of penstock.toml, or {variables}.{old}"
        )
    return found


def main(script: Literal["simple", "real", "example"], argv: Sequence[str]) -> int:
    """Runs a script and gives its exit code: 0 done, 1 sequences were not saved, 2 misuse."""
    run, about = _SCRIPTS[script]
    app = App(name=f"save_sequences_{script}", help=about, result_action="return_value", version_flags=())

    @app.default
    def default(config: Annotated[ScriptConfig, Parameter(name="*")] = ScriptConfig()) -> int:
        return run(config)

    arguments = [word.replace("_", "-") if word.startswith("--") and "=" not in word else word for word in argv]
    try:
        code = app(arguments, exit_on_error=False, print_error=True)
    except CycloptsError:
        return 2
    except PenstockError as error:
        sys.stderr.write(f"penstock: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return code if isinstance(code, int) else 0


def _simple(config: ScriptConfig) -> int:
    return _save(config, whole_pictures())


def _real(config: ScriptConfig) -> int:
    return _save(config, trained_crops())


def _example(config: ScriptConfig) -> int:
    sampler, saver = config.sampler(trained_crops()), config.saver()
    one = saver.save_sequence_data(sampler[0], "example", config.save_images, config.save_format)
    metadata, annotations = saver.load_sequence_data(one, load_format=config.save_format)
    pictures = saver.load_sequence_images(one)
    _say(f"saved {one}")
    _say(f"metadata: {metadata}")
    _say(f"annotations: { ({name: len(boxes) for name, boxes in annotations.items()}) }")
    _say(f"pictures: { ({role: [image.shape for image in images] for role, images in pictures.items()}) }")
    return _save(config, trained_crops())


def _save(config: ScriptConfig, processing: Processing) -> int:
    sampler, saver = config.sampler(processing), config.saver()
    saved = save_sequences_from_sampler(
        sampler,
        config.num_sequences,
        save_images=config.save_images,
        save_format=config.save_format,
        num_workers=config.num_workers,
        saver=saver,
    )
    for failure in saver.failures:
        sys.stderr.write(f"  not saved: {failure.key}: {failure.message}\n")
    _say(f"saved {len(saved)} of {config.num_sequences} sequences in {config.save_dir}")
    _say(f"paths: {config.save_dir / f'saved_paths_{saver.timestamp}.txt'}")
    return 0 if len(saved) == config.num_sequences else 1


_SCRIPTS = {
    "simple": (_simple, "Save sequences of whole pictures, as the sampler draws them."),
    "real": (_real, "Save sequences of the crops that a tracker is trained on, boxes and trajectories with them."),
    "example": (_example, "Save one sequence and load it again; then save several."),
}


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
