"""Which labels are lesions, by the words in their names."""

import re

# Tumours, whose pieces are counted one by one. Cysts and benign lesions are not among them.
_TUMOUR = r"tumou?r|lesion|cancer|metasta"
_FURTHER = r"hcc|ha?emangioma|(?<![a-z])cysts?(?![a-z])"
_TUMOURS = re.compile(_TUMOUR, re.IGNORECASE)
_LESIONS = re.compile(f"{_TUMOUR}|{_FURTHER}", re.IGNORECASE)


def is_tumour(label: str) -> bool:
    """Whether the pieces of a label are tumours that a score counts: tumour, lesion, cancer, ..."""
    return _TUMOURS.search(label) is not None


def is_lesion(label: str) -> bool:
    """Whether a label lies inside an organ: a tumour, or a cyst, HCC or haemangioma."""
    return _LESIONS.search(label) is not None
