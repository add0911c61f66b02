"""`safetensors`: a file of tensors per sequence. Needs the extra `safetensors`."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import orjson

from penstock.errors import MissingExtra
from penstock.exporters.base import Output, Sequences
from penstock.exporters.records import Records


@dataclass(frozen=True, kw_only=True)
class Safetensors:
    """safetensors: `NAME.safetensors` per sequence, with every field of its record that is no text, as `Saved` gives it.

    Types and shapes are those of the record: pictures (n, S, S, 3) uint8 RGB for crops, `template_image_000` (H, W, 3) each
    for the source's own; boxes XYWH, in the frame that the field's meaning says, NaN for no number. The file's metadata has
    a key `penstock`: JSON with the texts, the nine metadata keys, the meaning of each field, the digest and the licence.
    """

    name: ClassVar[str] = "safetensors"
    version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = True

    def run(self, sequences: Sequences, out: Output) -> None:
        """See `Exporter.run`.

        Raises:
            SourceNotFound: SequenceSaver wrote the set, which keeps no schema.
        """
        try:
            from safetensors.numpy import save
        except ImportError as error:
            raise MissingExtra("safetensors", "safetensors", "exporting safetensors") from error
        records = Records(sequences)
        meaning = {name: field.meaning for name, field in records.schema.items()}
        for sequence, record in sequences.map(lambda sequence: (sequence, records.read(sequence))):
            texts = {name: value for name, value in record.items() if isinstance(value, str)}
            tensors = {name: np.ascontiguousarray(value).reshape(np.shape(value))
                       for name, value in record.items() if not isinstance(value, str)}  # fmt: skip
            about = {
                **sequence.about(),
                "metadata": sequence.metadata,
                "texts": texts,
                "meaning": meaning,
                "licence": sequences.summary()["licence"],
            }
            out.write({f"{sequence.name}.safetensors": save(tensors, {"penstock": orjson.dumps(about).decode()})})
