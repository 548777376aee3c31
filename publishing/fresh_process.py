"""What transformers makes of a folder, in a process that has not imported vitrail.

python fresh_process.py FOLDER IMAGES OUTPUTS {classifier,backbone} {trusted,untrusted}

IMAGES is a NumPy archive of (H, W, 3) 8-bit images; OUTPUTS becomes one with the logits or tokens of all of them. The
last argument is about the sources in the folder.
"""

import sys

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification


folder, images, outputs, kind, trust = sys.argv[1:]
trusted, classifies = trust == "trusted", kind == "classifier"
auto_class = AutoModelForImageClassification if classifies else AutoModel
model = auto_class.from_pretrained(folder, trust_remote_code=trusted, dtype=torch.float32)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trusted)
with np.load(images) as archive:
    inputs = processor(list(archive.values()), return_tensors="pt")
with torch.inference_mode():
    said = model(**inputs)
np.savez(outputs, (said.logits if classifies else said.last_hidden_state).numpy())
