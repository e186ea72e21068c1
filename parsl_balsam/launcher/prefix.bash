# bash reads this file, by BASH_ENV, before it runs `bash -c COMMAND`.
#
# Stage "launch", in the bash of a parallel task's app: start COMMAND on every rank, unless it does so itself.
# Stage "rank", on every rank: end if the task was given up meanwhile, and choose the rank's GPUs.
# The MPI launcher, and what COMMAND starts, find the user's own BASH_ENV.

_balsam_stage=$BALSAM_STAGE _balsam_file=$BASH_ENV _balsam_user=$BALSAM_USER_BASH_ENV
unset BALSAM_STAGE BALSAM_USER_BASH_ENV
if [[ $_balsam_user ]]; then
    BASH_ENV=$_balsam_user
else
    unset BASH_ENV
fi
if [[ $_balsam_stage == launch && ${BASH_EXECUTION_STRING+set} ]]; then
    case $BASH_EXECUTION_STRING in
    *PARSL_MPI_PREFIX* | *PARSL_SRUN_PREFIX* | *PARSL_MPIEXEC_PREFIX* | *PARSL_APRUN_PREFIX*) ;;
    *)
        # By env, since the launcher may be a script for bash, which must not take itself for a rank.
        _balsam_env=(env BALSAM_STAGE=rank "BASH_ENV=$_balsam_file" "BALSAM_USER_BASH_ENV=$_balsam_user")
        eval "exec $PARSL_MPI_PREFIX \"\${_balsam_env[@]}\" bash -c \"\$BASH_EXECUTION_STRING\""
        ;;
    esac
elif [[ $_balsam_stage == rank && -e $BALSAM_RANKS_ENDED ]]; then
    exit 1
elif [[ $_balsam_stage == rank && $BALSAM_GPUS_PER_RANK ]]; then
    _balsam_rank=${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${PALS_LOCAL_RANKID:-${JSM_NAMESPACE_LOCAL_RANK:-${SLURM_LOCALID:-0}}}}}
    # Others than srun pass on the variables of the node on which they were started.
    if [[ $PARSL_MPI_PREFIX == "srun "* && $SLURMD_NODENAME ]]; then
        _balsam_node=$SLURMD_NODENAME
    else
        read -r _balsam_node </proc/sys/kernel/hostname
    fi
    _balsam_mine=()
    read -r -a _balsam_rows <<<"$BALSAM_GPUS"
    for _balsam_row in "${_balsam_rows[@]}"; do
        _balsam_host=${_balsam_row%%=*}
        if [[ $_balsam_host == '*' || ${_balsam_host%%.*} == "${_balsam_node%%.*}" ]]; then
            IFS=, read -r -a _balsam_gpus <<<"${_balsam_row#*=}"
            _balsam_mine=("${_balsam_gpus[@]:_balsam_rank*BALSAM_GPUS_PER_RANK:BALSAM_GPUS_PER_RANK}")
            break
        fi
    done
    export CUDA_VISIBLE_DEVICES="$(IFS=, && printf %s "${_balsam_mine[*]}")"
    export ROCR_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES ZE_AFFINITY_MASK=$CUDA_VISIBLE_DEVICES
fi
[[ $_balsam_stage != rank ]] || exec </dev/null # Hydra gives all ranks but the first one without an end
[[ ! -r $BASH_ENV ]] || . "$BASH_ENV"
unset "${!_balsam_@}"
