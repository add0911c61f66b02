"""The record of a saved sequence, for exporters that carry it whole."""

from collections.abc import Sequence

from penstock.errors import BadData, UsageError
from penstock.exporters.base import Sequences
from penstock.exporters.sequences import SavedSequence
from penstock.saved import Saved
from penstock.schema import Record


class Records:
    """Records as `penstock.saved.Saved` gives them.

    Raises:
        SourceNotFound: SequenceSaver wrote the set, which keeps no schema.
        UsageError: pictures of the source are asked for apart.
    """

    def __init__(self, sequences: Sequences) -> None:
        if sequences.saved.pictures != "saved":
            raise UsageError("pictures=source: this layout carries every picture that the set has; leave it out")
        self.saved = Saved(sequences.saved.root)
        self.schema = self.saved.schema

    def read(self, sequence: SavedSequence, fields: Sequence[str] | None = None) -> Record:
        """Fields of the record of a sequence, in the order of the schema; all of them for None.

        Raises:
            BadData: a field is missing, or does not fit.
        """
        try:
            return self.saved.read(sequence.index, fields)
        except (KeyError, TypeError) as error:
            raise BadData(f"{sequence.folder}: provenance is not as penstock writes it: {error!r}") from error
