/* Every rank says "rank pid" when all have met, and stays; with the argument "stubborn" it ignores SIGTERM. */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int rank;

    MPI_Init(&argc, &argv);
    if (argc > 1 && strcmp(argv[1], "stubborn") == 0)
        signal(SIGTERM, SIG_IGN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Barrier(MPI_COMM_WORLD);
    printf("%d %d\n", rank, (int)getpid());
    fflush(stdout);
    for (;;)
        sleep(86400);
}
