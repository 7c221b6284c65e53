# make train   sets up, then trains uncoded and coded with stragglers on real data and prints the comparison
# make test    sets up, then lint, type checks, the C++ core under sanitizers, and all tests but the soak
#
# Everything lives in .venv; PYTHON chooses the interpreter that makes it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py csrc/toolchain.py $(wildcard csrc/*.cpp csrc/*.h)
CXX_FILES := $(wildcard csrc/*.cpp csrc/*.h csrc/cuda/*.cuh tests/csrc/*.cpp tests/csrc/*.h bench/*.cpp)

# Where the environment keeps Python from writing down what it has compiled, every rank and every process of the tests
# would compile all modules of the tree again: a sixth of a rank's start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train test core runner setup lint format types sanitize aarch64 windows cross pcluster jax-cuda soak test-gpu bench clean wheel test-wheel reproducible

train: $(VENV)/train.stamp
	$(BIN)/python -m mpi_runner compare --workers 8 --iterations 50 --delay fixed:0.5:2 --seed 1 \
	    --schemes uncoded cyclic_repetition:stragglers=2 polynomial:stragglers=2,reduction=2 grouped:load=4,reduction=2

# The runner's tests mostly wait: the core's, and then the sanitizers' build, take the other core meanwhile.
test: lint types
	$(MAKE) --no-print-directory -j2 runner core sanitize

# Threads that wait sleep: the cores are shared with the other tests.
core: export OMP_WAIT_POLICY := passive
core: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "not soak and not gpu" --ignore tests/mpi_runner

runner: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "not soak and not gpu" tests/mpi_runner

setup: $(VENV)/dev.stamp

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# The C++ core, with a test of its own, under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize:
	tests/csrc/run_sanitized.sh

# The same for AArch64 under QEMU; needs a cross compiler and QEMU, so it is no part of `make test`.
aarch64:
	tests/csrc/run_aarch64.sh

# For Windows, with the library and the examples in C and C++, under Wine; needs mingw-w64's compiler and Wine.
windows: $(VENV)/dev.stamp
	PYTHON=$(BIN)/python tests/csrc/run_windows.sh

# Compiles and links it all by Clang for macOS, Windows and AArch64, which it cannot run. ziglang has all that is needed.
cross: $(VENV)/pip.stamp
	$(BIN)/python -m pip install --quiet ziglang==0.17.1
	PYTHON=$(BIN)/python tests/csrc/run_cross.sh

# AWS ParallelCluster, whose schema the test of the cluster on EC2 asks. An environment of its own, of 180 MB: it wants
# other versions than the package, and `make test` does without.
PCLUSTER := 3.16.1
pcluster: .venv-pcluster/$(PCLUSTER).stamp

.venv-pcluster/$(PCLUSTER).stamp:
	$(PYTHON) -m venv .venv-pcluster
	.venv-pcluster/bin/python -m pip install --quiet 'aws-parallelcluster==$(PCLUSTER)'
	touch $@

# JAX's CUDA plugin, with which a test of the soak has XLA compile for a GPU that is not there. An environment of its own,
# of 1.5 GB; the plugin without what it needs to run.
JAX_CUDA := 0.10.2
jax-cuda: .venv-jax-cuda/$(JAX_CUDA).stamp

.venv-jax-cuda/$(JAX_CUDA).stamp:
	$(PYTHON) -m venv .venv-jax-cuda
	.venv-jax-cuda/bin/python -m pip install --quiet 'jax==$(JAX_CUDA)' scipy cuda-pathfinder 'nvidia-cuda-nvrtc>=13,<14' \
	    'nvidia-cuda-nvcc>=13,<14' 'nvidia-nvvm>=13,<14' 'nvidia-cuda-crt>=13,<14' 'nvidia-cuda-runtime>=13,<14'
	.venv-jax-cuda/bin/python -m pip install --quiet --no-deps 'jax-cuda13-plugin==$(JAX_CUDA)' 'jax-cuda13-pjrt==$(JAX_CUDA)'
	touch $@

# Every promised survivor set × every length to 1000 × both element types: 32 minutes of one core.
soak: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m soak

# The CUDA backend on a machine that has a GPU, with `pip install '.[cuda13]'` or `[cuda12]` in $(VENV), and fastgc.jax
# with `[jax-cuda13]` or `[jax-cuda12]`; no part of
# `make test`, and a failure where there is no GPU.
test-gpu: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m gpu tests/fastgc/kernels/test_cuda_gpu.py tests/fastgc/kernels/test_numba_gpu.py \
	    tests/fastgc/test_torch_gpu.py tests/fastgc/test_jax_gpu.py

# A wheel that needs no compiler where it is installed; and the core's tests where it is, in a fresh environment.
wheel: $(VENV)/dev.stamp
	rm -rf build/lib* build/bdist* build/wheel dist
	$(BIN)/python -m pip wheel . --quiet --no-deps --no-build-isolation --wheel-dir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair build/wheel/*.whl --wheel-dir dist

test-wheel: wheel
	$(BIN)/python tests/package/installed.py dist/*.whl

# Compiles everything twice.
reproducible: $(VENV)/dev.stamp
	PYTHON=$(BIN)/python tests/package/reproducible.sh

# Times of the kernels, against those of the run before; bench/README.md says how peers and the machine are measured.
bench: $(VENV)/dev.stamp
	$(BIN)/python -m pytest bench --benchmark-autosave --benchmark-compare --benchmark-max-time=0.2

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf $(VENV) .venv-pcluster .venv-jax-cuda build dist .asan .aarch64 .cross .windows .mypy_cache .ruff_cache .pytest_cache *.egg-info fastgc/*.so \
	    fastgc/include fastgc/lib

# Editable installs: Python files count at once, C++ files after `make setup`.
$(VENV)/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/train.stamp: $(VENV)/pip.stamp $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/pip.stamp $(VENV)/torch.stamp $(SOURCES)
	FASTGC_WITH_JAX=1 $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/train.stamp

# PyTorch for the CPU only: on Linux the package index has it with gigabytes of CUDA. It comes from where pip is set up
# to look, or else from PyTorch's own index; where neither has it, the tests that need it are skipped.
TORCH := torch==2.13.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu
$(VENV)/torch.stamp: $(VENV)/pip.stamp
	$(BIN)/python -m pip install --quiet --only-binary torch '$(TORCH)+cpu' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet --retries 1 --timeout 20 --index-url $(TORCH_INDEX) '$(TORCH)' || \
	    echo 'PyTorch for the CPU could not be installed: its tests will be skipped'
	touch $@
