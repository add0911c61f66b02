"""An id map made better by a picture and proposals of masks: pure functions on arrays; models come in through a protocol."""
