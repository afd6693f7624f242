#!/bin/bash
# launch/tpu_vm.sh configs/palm/8b.py gs://BUCKET/palm_8b
#
# Runs on every worker of a Cloud TPU VM slice; JAX learns from the machine which is which. Fill in below: name and zone.
# The package, the config and the data must lie in the home folder of each worker; checkpoints go to the bucket, logs and
# the report to ~/run on worker 0. That needs `pip install gcsfs` there.
set -u
NAME=${NAME:-FILL_IN}
ZONE=${ZONE:-FILL_IN}
CONFIG=${1:?a config}
CHECKPOINTS=${2:?gs://BUCKET/FOLDER}
RESTARTS=${RESTARTS:-10}

# On each worker. After a loss all leave with the same code within a minute, and meet again at the next start.
read -r -d '' WORKER <<EOF
for ((restart = 0; ; restart++)); do
    pathways-lm train $CONFIG --run run --set train.checkpoint_dir=$CHECKPOINTS
    code=\$?
    case \$code in 0 | 2 | 143) exit \$code ;; esac
    ((restart >= $RESTARTS)) && exit \$code
    sleep 10
done
EOF
exec gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$WORKER"
