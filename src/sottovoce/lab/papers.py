"""What the papers print, as data: tables with the section they stand in and how well each number is known.

Status of a row: `known` = the paper's number; `arithmetic` = ours, from its architecture; `missing` = not public.
Papers: A arXiv 2407.08991, B arXiv 2406.05359, C arXiv 2210.17326, D arXiv 2606.08078.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Values = Mapping[str, float]  # by column


@dataclass(frozen=True)
class Corpus:
    """Recordings that must be bought or fetched, and where they go below the corpora's root."""

    what: str
    place: str  # a file or folder that is there when the corpus is


@dataclass(frozen=True)
class Test:
    """Trial lists and the folder that their names start from, below the corpora's root."""

    lists: tuple[str, ...]
    audio: str


@dataclass(frozen=True)
class Row:
    """One line of a paper's table."""

    key: str  # of the recipe and of the result: recipes/paper-x/<key>.toml, results/<table>/<key>.*.json
    labels: tuple[str, ...]
    values: Values
    network: str = ""  # preset whose size is computed on the spot; empty: none
    bits: int = 32
    status: str = "known"


@dataclass(frozen=True)
class Table:
    """A table of a paper; values are in the unit its column names."""

    title: str
    source: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    corpora: tuple[str, ...] = ()
    note: str = ""


CORPORA = {
    "voxceleb1": Corpus("VoxCeleb1, dev and test in one folder of speakers", "voxceleb1/wav/id10270"),
    "voxceleb1-lists": Corpus(
        "Vox1-O/E/H cleaned: veri_test2.txt, list_test_all2.txt, list_test_hard2.txt", "voxceleb1/veri_test2.txt"
    ),
    "voxceleb2": Corpus("VoxCeleb2 dev, converted from .m4a to .wav", "voxceleb2/wav/id00012"),
    "cnceleb": Corpus("CN-Celeb 1, as distributed", "CN-Celeb_flac/eval/lists/trials.lst"),
    "commonbench": Corpus("CommonBench, its trial list beside its recordings", "commonbench/commonbench.txt"),
    "voxtube": Corpus("VoxTube, one folder a speaker", "voxtube"),
    "musan": Corpus("MUSAN", "musan/noise"),
    "rirs": Corpus("RIRS_NOISES", "RIRS_NOISES/simulated_rirs"),
}
TESTS = {  # corpus → what is evaluated on it
    "voxceleb1": Test(
        ("voxceleb1/veri_test2.txt", "voxceleb1/list_test_all2.txt", "voxceleb1/list_test_hard2.txt"), "voxceleb1/wav"
    ),
    "cnceleb": Test(("CN-Celeb_flac/eval/lists/trials.lst",), "CN-Celeb_flac/eval"),
    "commonbench": Test(("commonbench/commonbench.txt",), "commonbench"),
}
_TRAINING = ("voxceleb2", "musan", "rirs", "voxceleb1", "voxceleb1-lists")


def _c(key: str, labels: tuple[str, ...], network: str, bits: int, mb: float, *eer: float) -> Row:
    return Row(key, (*labels, str(bits)), {"MB": mb, **dict(zip("OEH", eer, strict=True))}, network, bits)


_ECAPA256, _ECAPA512, _ECAPA1024 = "ecapa256-c", "ecapa512-c", "ecapa1024-c"
_RESNET18, _RESNET34 = "resnet18-c", "resnet34-c"

C_TABLE1 = Table(
    "Weight quantization on VoxCeleb1: size and EER with AS-norm",
    "C, table 1",
    ("model", "method", "bits"),
    ("MB", "O", "E", "H"),
    (
        _c("ecapa512", ("ECAPA-512", "float"), _ECAPA512, 32, 23.87, 1.07, 1.28, 2.43),
        _c("ecapa512-uniform8", ("ECAPA-512", "uniform"), _ECAPA512, 8, 6.09, 1.20, 1.46, 2.75),
        _c("ecapa512-pot8", ("ECAPA-512", "powers of two"), _ECAPA512, 8, 6.09, 1.43, 1.69, 3.11),
        _c("ecapa512-uniform4", ("ECAPA-512", "uniform"), _ECAPA512, 4, 3.13, 1.56, 1.78, 3.29),
        _c("ecapa512-pot4", ("ECAPA-512", "powers of two"), _ECAPA512, 4, 3.13, 1.65, 1.86, 3.41),
        _c("ecapa1024", ("ECAPA-1024", "float"), _ECAPA1024, 32, 57.61, 0.92, 1.15, 2.28),
        _c("ecapa1024-uniform8", ("ECAPA-1024", "uniform"), _ECAPA1024, 8, 14.6, 1.26, 1.45, 2.73),
        _c("ecapa1024-pot8", ("ECAPA-1024", "powers of two"), _ECAPA1024, 8, 14.6, 1.41, 1.59, 2.99),
        _c("resnet34", ("ResNet34", "float"), _RESNET34, 32, 27.63, 1.10, 1.15, 2.08),
        _c("resnet34-uniform8", ("ResNet34", "uniform"), _RESNET34, 8, 6.96, 1.05, 1.11, 2.02),
        _c("resnet34-pot8", ("ResNet34", "powers of two"), _RESNET34, 8, 6.96, 1.28, 1.34, 2.41),
        _c("resnet34-uniform4", ("ResNet34", "uniform"), _RESNET34, 4, 3.52, 1.22, 1.29, 2.32),
        _c("resnet34-pot4", ("ResNet34", "powers of two"), _RESNET34, 4, 3.52, 1.35, 1.40, 2.52),
        _c("ecapa256", ("ECAPA-256", "float"), _ECAPA256, 32, 12.5, 1.43, 1.59, 2.87),
        _c("ecapa256-from-ecapa512", ("ECAPA-256", "distilled from 512"), _ECAPA256, 32, 12.5, 1.29, 1.53, 2.88),
        _c("ecapa256-from-ecapa1024", ("ECAPA-256", "distilled from 1024"), _ECAPA256, 32, 12.5, 1.30, 1.53, 2.85),
        _c("resnet18", ("ResNet18", "float"), _RESNET18, 32, 17.51, 1.45, 1.44, 2.53),
        _c("resnet18-from-resnet34", ("ResNet18", "distilled"), _RESNET18, 32, 17.51, 1.33, 1.39, 2.48),
    ),
    _TRAINING,
    "MB = 10^6 bytes: weights at these bits, all else in float32. The paper's EER is with AS-norm, ours by cosine.",
)


def _cn(key: str, labels: tuple[str, ...], bits: int, eer: float) -> Row:
    return Row(key, (*labels, str(bits)), {"CN-Celeb": eer}, bits=bits)


C_TABLE2 = Table(
    "The networks of table 1 on CN-Celeb, not trained on it: EER",
    "C, table 2",
    ("model", "method", "bits"),
    ("CN-Celeb",),
    (
        _cn("ecapa512", ("ECAPA-512", "float"), 32, 17.61),
        _cn("ecapa512-uniform8", ("ECAPA-512", "uniform"), 8, 17.50),
        _cn("ecapa512-uniform4", ("ECAPA-512", "uniform"), 4, 16.12),
        _cn("resnet34", ("ResNet34", "float"), 32, 11.85),
        _cn("resnet34-uniform8", ("ResNet34", "uniform"), 8, 11.75),
        _cn("resnet34-uniform4", ("ResNet34", "uniform"), 4, 11.93),
        _cn("ecapa256-from-ecapa512", ("ECAPA-256", "distilled from 512"), 32, 18.13),
        _cn("ecapa256-from-ecapa1024", ("ECAPA-256", "distilled from 1024"), 32, 18.17),
        _cn("resnet18-from-resnet34", ("ResNet18", "distilled"), 32, 12.32),
    ),
    ("voxceleb2", "musan", "rirs", "cnceleb"),
)


def _d(model: str, bits: int, **values: float) -> Row:
    key = f"{model.lower().replace('-', '')}{'' if bits == 32 else f'-kmeans{bits}'}"
    names = {"id_eer": "in-domain EER", "id_dcf": "in-domain minDCF", "ood_eer": "out-of-domain EER", "all": "mean EER"}
    return Row(key, (model, str(bits)), {names[name]: value for name, value in values.items()}, bits=bits)


D_SYSTEM = Table(
    "K-means quantization-aware training: EER and minDCF (0.01); in-domain = mean of Vox1-O/E/H cleaned",
    "D, system level",
    ("model", "bits"),
    ("in-domain EER", "in-domain minDCF", "out-of-domain EER", "mean EER"),
    (
        _d("ResNet-36", 32, id_eer=1.234, id_dcf=0.118, ood_eer=7.923, all=3.910),
        _d("ResNet-36", 4, id_eer=1.278, id_dcf=0.124),
        _d("ResNet-36", 3, id_eer=1.297, id_dcf=0.123),
        _d("ResNet-36", 2, id_eer=1.462, id_dcf=0.146, ood_eer=8.538, all=4.293),
        _d("ResNet-200", 32, id_eer=0.984),
        _d("ResNet-200", 4, id_eer=1.076),
        _d("ResNet-200", 3, id_eer=1.081),
        _d("ResNet-200", 2, id_eer=1.127),
    ),
    (*_TRAINING, "cnceleb", "commonbench"),
    "From a public reading of the paper. Out-of-domain = mean of CommonBench and CN-Celeb. Cosine without AS-norm.",
)


def _m(bits: int, total: float, index: float, books: float, bare: float) -> tuple[Row, Row]:
    known, network = {"total MiB": total, "indices MiB": index, "codebooks MiB": books}, "resnet36-d"
    return (
        Row(f"bits{bits}", (str(bits), "as printed"), known, network, bits),
        Row(f"bits{bits}-bare", (str(bits), "without classifier"), {"total MiB": bare}, network, bits, "arithmetic"),
    )


D_MEMORY = Table(
    "Deployable memory of ResNet-36: packed indices, codebooks in float16, float classifier of 5,994 speakers",
    "D, memory table",
    ("bits", "what"),
    ("total MiB", "indices MiB", "codebooks MiB"),
    (*_m(4, 13.54, 7.10, 0.371, 7.68), *_m(3, 11.57, 5.33, 0.186, 5.72), *_m(2, 9.71, 3.55, 0.093, 3.85)),
    note="One codebook of 2^b float16 levels for each output channel; that reading alone gives the printed numbers.",
)

D_DRIFT = Table(
    "Mean absolute change of the score against the float network",
    "D, score level",
    ("model", "bits"),
    ("ID full", "ID test only", "OOD full", "OOD test only"),
    tuple(
        Row(
            f"{model.lower().replace('-', '')}-kmeans{bits}",
            (model, str(bits)),
            dict(zip(("ID full", "ID test only", "OOD full", "OOD test only"), values, strict=True)),
            bits=bits,
        )
        for model, bits, values in (
            ("ResNet-36", 4, (0.0147, 0.0108, 0.0228, 0.0174)),
            ("ResNet-36", 3, (0.0175, 0.0133, 0.0248, 0.0190)),
            ("ResNet-36", 2, (0.0301, 0.0277, 0.0372, 0.0327)),
            ("ResNet-200", 4, (0.0198, 0.0151, 0.0291, 0.0228)),
            ("ResNet-200", 3, (0.0214, 0.0162, 0.0308, 0.0242)),
            ("ResNet-200", 2, (0.0257, 0.0209, 0.0353, 0.0285)),
        )
    ),
    (*_TRAINING, "cnceleb", "commonbench"),
    "Full: both sides at b bits. Test only: enrolment by the float network.",
)

A_HEADLINE = Table(
    "8 bits in part of ECAPA-TDNN after training: the smaller file and what it costs",
    "A, abstract and summary",
    ("result",),
    ("fewer bytes %", "EER change"),
    (Row("chosen", ("layers chosen by the sweep",), {"fewer bytes %": 53.44, "EER change": 0.07}),),
    note="EER change is absolute, in per cent. The paper's layer set, EER and file size are not public; its test list "
    "served for calibration too. Ours: our own network and lists, ranges observed on training recordings.",
)

A_GROUPS = Table(
    "Share of the parameters in each group of ECAPA-TDNN (C = 1024); cost of 8 bits there",
    "A, architecture of its public code",
    ("group",),
    ("share %", "bytes saved %", "EER change"),
    tuple(
        Row(group, (group,), {"share %": share}, "ecapa1024-a", status="arithmetic")
        for group, share in (
            ("conv1", 2.7),
            ("block1", 17.6),
            ("block2", 17.6),
            ("block3", 17.6),
            ("mfa", 30.6),
            ("attention", 10.2),
            ("fc", 3.8),
        )
    ),
    note="Not public as a table. Our share: of the same network; our other columns: of the network swept.",
)

B_RESULTS = Table(
    "Adaptive k-means quantization, mixed precision, binary quantizers",
    "B, all tables",
    ("result",),
    ("EER",),
    (Row("all", ("every table",), {}, status="missing"),),
    note="No table of B is public. In words: 4 bits are lossless on ResNets and DF-ResNets at 1/8 of the bytes.",
)

TABLES = {
    "paper-a-headline": A_HEADLINE,
    "paper-a-groups": A_GROUPS,
    "paper-b": B_RESULTS,
    "paper-c-table1": C_TABLE1,
    "paper-c-table2": C_TABLE2,
    "paper-d-system": D_SYSTEM,
    "paper-d-drift": D_DRIFT,
    "paper-d-memory": D_MEMORY,
}
