"""Asks ParallelCluster's schema about configurations; run by the Python of ParallelCluster's own environment.

A JSON list of configurations in, one of complaints out: null for what the schema accepts.
"""

import json
import sys

import yaml
from marshmallow import ValidationError
from pcluster.schemas.cluster_schema import ClusterSchema


def complaint(text):
    try:
        ClusterSchema(cluster_name="fastgc").load(yaml.safe_load(text))
    except ValidationError as error:
        return str(error.messages)
    return None


json.dump([complaint(text) for text in json.load(sys.stdin)], sys.stdout)
