/* Every rank says where it runs: "rank size node". With an argument it stays that many seconds after all have met. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Find out the Slurm node, as all nodes of the tests are one host. The variable of a rank itself may be that of the
   node its mpiexec runs on; Slurm sets the right one for the ancestor that it started. */
static void find_node(char *node, size_t size)
{
    static char environment[1 << 20];
    char path[64], stat[512];
    const char *name = "SLURMD_NODENAME=";

    for (int pid = getpid(); pid > 1;) {
        snprintf(path, sizeof path, "/proc/%d/environ", pid);
        FILE *file = fopen(path, "r");
        size_t length = file ? fread(environment, 1, sizeof environment - 1, file) : 0;
        if (file)
            fclose(file);
        environment[length] = '\0';
        for (char *at = environment; at < environment + length; at += strlen(at) + 1)
            if (strncmp(at, name, strlen(name)) == 0)
                snprintf(node, size, "%s", at + strlen(name));

        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        file = fopen(path, "r");
        char *end = file && fgets(stat, sizeof stat, file) ? strrchr(stat, ')') : NULL;
        if (file)
            fclose(file);
        if (!end || sscanf(end + 1, " %*c %d", &pid) != 1)
            return;
    }
}

int main(int argc, char **argv)
{
    int rank, size, length;
    char node[MPI_MAX_PROCESSOR_NAME];

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(node, &length);
    find_node(node, sizeof node);
    MPI_Barrier(MPI_COMM_WORLD);
    printf("%d %d %s\n", rank, size, node);
    fflush(stdout);
    if (argc > 1) {
        double seconds = atof(argv[1]);
        struct timespec stay = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
        nanosleep(&stay, NULL);
    }
    MPI_Finalize();
    return 0;
}
