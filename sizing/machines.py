"""Machines by name: what their data sheets promise, what of it we assume is reached, and what they are assumed to cost.

Matrix rates are dense (data sheets of NVIDIA print them with 2:4 sparsity, twice as much). Bandwidths are one way.
Prices, host memory and disks are of nobody's data sheet: they are assumed, per GPU, and there to be replaced.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from errors import ConfigError
from sizing.figures import Figure, Source, assumed, derived, sheet

GB = 1e9
GIB = float(1 << 30)
TERA = 1e12
CPU = "cpu"


@dataclass(frozen=True)
class Machine:
    """One accelerator and its share of the node that it is in.

    Args:
        memory_bytes, memory_bytes_s: of the device.
        matrix_ops_s: multiplications and additions a second, by type of the elements.
        link_bytes_s: between host and device, one way; ``peer_bytes_s`` between two devices.
        host_bytes, disk_bytes, disk_read_bytes_s, disk_write_bytes_s: of the node, by accelerator.
        price_hour: of the accelerator and its share of the node.
        reached_matrix, reached_memory, reached_link: shares of the promises that a program of this kind reaches.
        context_bytes: of the device that the driver, libraries and fragmentation take.
        launch_s: that one operation of the program takes at least, however small.
    """

    name: str
    memory_bytes: Figure
    memory_bytes_s: Figure
    matrix_ops_s: Mapping[str, Figure]
    link_bytes_s: Figure
    peer_bytes_s: Figure
    price_hour: Figure
    host_bytes: Figure
    disk_bytes: Figure
    disk_read_bytes_s: Figure
    disk_write_bytes_s: Figure
    # MaineCoon's 47.5 fps on one H100 (arXiv 2606.17800) is 0.34 s for 0.64 s of media, of a 22 B model; its schedule
    # is not said. Four passes and a commit at our size and keep-set would be about 0.4 of the H100's peak.
    reached_matrix: Figure = field(default_factory=lambda: assumed(0.4, "share of the matrix rate that is reached"))
    reached_memory: Figure = field(default_factory=lambda: assumed(0.7, "share of the memory bandwidth"))
    reached_link: Figure = field(
        default_factory=lambda: assumed(0.85, "share of the link's bandwidth")
    )  # 54 of 64 GB/s
    context_bytes: Figure = field(default_factory=lambda: assumed(2 * GIB, "driver, libraries, fragmentation"))
    launch_s: Figure = field(default_factory=lambda: assumed(5e-6, "to begin an operation"))

    def rate(self, dtype: str) -> Figure:
        """Operations a second that a program reaches with elements of this type."""
        found = self.matrix_ops_s.get(dtype)
        if found is None:
            raise ConfigError(
                f"no matrix rate of {self.name} for {dtype}; expected {' or '.join(self.matrix_ops_s)}, or a "
                "measurement"
            )
        return _reached(found, self.reached_matrix)

    @property
    def bandwidth(self) -> Figure:
        """Bytes a second of the device's memory that a program reaches."""
        return _reached(self.memory_bytes_s, self.reached_memory)

    @property
    def link(self) -> Figure:
        """Bytes a second between host and device that a program reaches."""
        return _reached(self.link_bytes_s, self.reached_link)


def _reached(promise: Figure, share: Figure) -> Figure:
    """A share of a promise; what was measured is what is reached."""
    return promise if promise.source is Source.MEASURED else derived(promise.value * share.value, (promise, share))


def _gpu(
    name: str,
    memory_gb: float,
    memory_gb_s: float,
    tera: tuple[float, float, float],
    link_gb_s: float,
    peer_gb_s: float,
    price: float,
) -> Machine:
    """``tera``: 10¹² operations a second in bfloat16 and float16, in eight bits, and in float32 by TF32."""
    half, eighth, full = (sheet(t * TERA) for t in tera)
    rates = {"bfloat16": half, "float16": half, "fp8": eighth, "float32": full}
    return Machine(
        name, sheet(memory_gb * GB), sheet(memory_gb_s * GB), rates, sheet(link_gb_s * GB), sheet(peer_gb_s * GB),
        assumed(price, "price per hour"), *_node(),
    )  # fmt: skip


def _node() -> tuple[Figure, Figure, Figure, Figure]:
    """An eighth of a server with eight: 2 TB of host memory and eight NVMe disks of 3.84 TB (PCIe 4.0, ×4)."""
    return assumed(250 * GB), assumed(3.84e12), assumed(6.5 * GB), assumed(3.5 * GB)


MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        # H100 SXM data sheet: 80 GB, 3.35 TB/s, 1,979 TFLOPS bf16 and 3,958 fp8 with sparsity, 989 TF32 with sparsity,
        # NVLink 900 GB/s and PCIe Gen5 128 GB/s both ways together.
        _gpu("h100", 80, 3350, (989.5, 1979, 494.5), 64, 450, 3.00),
        # H200 SXM data sheet: 141 GB, 4.8 TB/s, else as the H100.
        _gpu("h200", 141, 4800, (989.5, 1979, 494.5), 64, 450, 3.80),
        # HGX B200 data sheet, an eighth: 180 GB, 8 TB/s, 4.5 PFLOPS bf16 and 9 fp8 with sparsity, 2.2 TF32 with
        # sparsity, NVLink 1.8 TB/s and PCIe Gen5 128 GB/s both ways together.
        _gpu("b200", 180, 8000, (2250, 4500, 1100), 64, 900, 6.00),
        # L40S data sheet: 48 GB, 864 GB/s, 362.05 TFLOPS bf16, 733 fp8, 183 TF32, PCIe Gen4 64 GB/s both ways together;
        # no NVLink.
        _gpu("l40s", 48, 864, (362.05, 733, 183), 32, 32, 1.20),
        # Ada architecture paper, GeForce RTX 4090: 24 GB, 1,008 GB/s, with accumulation in float32 165.2 TFLOPS bf16,
        # 330.3 fp8, 82.6 TF32; PCIe Gen4 ×16; no NVLink.
        _gpu("rtx4090", 24, 1008, (165.2, 330.3, 82.6), 32, 32, 0.50),
        # Two cores of a server at about 3 GHz, AVX2: 2 × 32 operations a cycle; nothing of it is a data sheet's.
        Machine(
            CPU, assumed(8 * GIB), assumed(20 * GB),
            {t: assumed(0.2 * TERA) for t in ("float32", "bfloat16", "float16")},
            assumed(10 * GB), assumed(1 * GB), assumed(0.10, "price per hour"),
            assumed(8 * GB), assumed(100 * GB), assumed(1 * GB), assumed(0.5 * GB), context_bytes=assumed(0.5 * GIB),
        ),
    )
}  # fmt: skip


def machine_named(name: str) -> Machine:
    """The machine of this name. Raises ``ConfigError`` with the names that there are."""
    found = MACHINES.get(name.lower().replace(" ", "").replace("-", ""))
    if found is None:
        raise ConfigError(f"gpu is {name!r}, which is not known; expected one of {', '.join(MACHINES)}")
    return found
