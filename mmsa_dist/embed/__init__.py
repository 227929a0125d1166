"""From molecules to vectors: an embedder, its export to Parquet, and search over exported vectors.

Importing this package loads torch and scikit-learn's base classes. RDKit is loaded with the first SMILES,
torch-geometric with the first model that has ComENet, FAISS with the first search, the hub client with the first
model from the hub. Importing never loads Ray or DeepSpeed.
"""

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.export import export_embeddings
from mmsa_dist.embed.outcome import EmbeddingError, InvalidMolecule
from mmsa_dist.embed.parquet import Embeddings, ExportError, ExportSummary, read_embeddings
from mmsa_dist.embed.pretrained import ModelFolderError, PretrainedModel

__all__ = [
    "Embedder",
    "EmbeddingError",
    "Embeddings",
    "ExportError",
    "ExportSummary",
    "InvalidMolecule",
    "ModelFolderError",
    "PretrainedModel",
    "export_embeddings",
    "read_embeddings",
]
