# bash reads this file, by BASH_ENV, before it runs `bash -c COMMAND`.
#
# Stage "launch", in the bash of a parallel task's app: start COMMAND on every rank, unless it does so itself.
# Stage "rank", on every rank: choose the rank's GPUs.
# What COMMAND starts finds the user's own BASH_ENV.

_balsam_stage=$BALSAM_STAGE
unset BALSAM_STAGE
if [[ $_balsam_stage == launch ]]; then
    case $BASH_EXECUTION_STRING in
    *PARSL_MPI_PREFIX* | *PARSL_SRUN_PREFIX* | *PARSL_MPIEXEC_PREFIX* | *PARSL_APRUN_PREFIX*) ;;
    *)
        export BALSAM_STAGE=rank
        eval "exec $PARSL_MPI_PREFIX bash -c \"\$BASH_EXECUTION_STRING\""
        ;;
    esac
elif [[ $_balsam_stage == rank && $BALSAM_GPUS_PER_RANK ]]; then
    _balsam_rank=${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${PALS_LOCAL_RANKID:-${JSM_NAMESPACE_LOCAL_RANK:-${SLURM_LOCALID:-0}}}}}
    # Others than srun pass on the variables of the node on which they were started.
    if [[ $PARSL_MPI_PREFIX == "srun "* && $SLURMD_NODENAME ]]; then
        _balsam_node=$SLURMD_NODENAME
    else
        read -r _balsam_node </proc/sys/kernel/hostname
    fi
    for _balsam_row in $BALSAM_GPUS; do
        case ${_balsam_row%%=*} in
        '*' | "$_balsam_node" | "${_balsam_node%%.*}")
            IFS=, read -r -a _balsam_gpus <<<"${_balsam_row#*=}"
            _balsam_mine=("${_balsam_gpus[@]:_balsam_rank*BALSAM_GPUS_PER_RANK:BALSAM_GPUS_PER_RANK}")
            export CUDA_VISIBLE_DEVICES="$(IFS=, && printf %s "${_balsam_mine[*]}")"
            export ROCR_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES ZE_AFFINITY_MASK=$CUDA_VISIBLE_DEVICES
            break
            ;;
        esac
    done
fi
if [[ $BALSAM_USER_BASH_ENV ]]; then
    export BASH_ENV=$BALSAM_USER_BASH_ENV
    unset BALSAM_USER_BASH_ENV
    [[ ! -r $BASH_ENV ]] || . "$BASH_ENV"
else
    unset BASH_ENV
fi
unset "${!_balsam_@}"
