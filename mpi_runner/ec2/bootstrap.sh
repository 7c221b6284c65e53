#!/bin/bash
# On the head node, as root, once: installs the runner where all nodes see it.
#
#   bootstrap.sh s3://BUCKET/…/FILE SHA256    a wheel or a source archive, which must have this checksum
#   bootstrap.sh git+https://…@REVISION
set -euo pipefail
source=$1
sha256=${2:-}
shared=/shared

export DEBIAN_FRONTEND=noninteractive
apt-get -o DPkg::Lock::Timeout=300 update -qq
apt-get -o DPkg::Lock::Timeout=300 install -qq -y --no-install-recommends python3-venv python3-dev g++ git

if [[ $source == s3://* ]]; then
    file=$(mktemp -d)/${source##*/}
    aws s3 cp --only-show-errors "$source" "$file"
    echo "$sha256  $file" | sha256sum --check --quiet
    source=file://$file
fi
# The nodes have the same image, and so the same Python beneath this environment.
python3 -m venv $shared/fastgc
$shared/fastgc/bin/pip install --quiet "fast-gradient-coding[train] @ $source"

mkdir -p $shared/cache $shared/runs
chown ubuntu: $shared/cache $shared/runs
# For those who log in; Slurm passes both on to jobs.
cat >/etc/profile.d/fastgc.sh <<END
export PATH=$shared/fastgc/bin:\$PATH
export FASTGC_CACHE=$shared/cache
END
