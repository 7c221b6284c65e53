/* The coded round trip of round_trip_numpy.py in C; docs/native.md says how it is compiled. */
#include <fastgc.h>
#include <stdio.h>
#include <stdlib.h>

enum { WORKERS = 4, PARTITIONS = 4, REDUCTION = 2, LENGTH = 10, BLOCK = LENGTH / REDUCTION };

static void check(int status) {
    if (status == FASTGC_OK) return;
    fprintf(stderr, "%s\n", fastgc_error_message());
    exit(1);
}

static void print_floats(const char* name, const float* numbers, int count) {
    printf("%s:", name);
    for (int i = 0; i < count; ++i) printf(" %.5f", numbers[i]);
    printf("\n");
}

int main(void) {
    /* Worker i sends block 0 + (i + 1) times block 1 of the sum: the same row for every partition that it holds. */
    double generator[WORKERS][REDUCTION], encoding[WORKERS][PARTITIONS][REDUCTION];
    for (int i = 0; i < WORKERS; ++i)
        for (int u = 0; u < REDUCTION; ++u) {
            generator[i][u] = u == 0 ? 1.0 : i + 1.0;
            for (int j = 0; j < PARTITIONS; ++j) encoding[i][j][u] = generator[i][u];
        }

    float gradients[PARTITIONS][LENGTH], sum[LENGTH] = {0};
    const void* rows[PARTITIONS];
    for (int j = 0; j < PARTITIONS; ++j) {
        rows[j] = gradients[j];
        for (int x = 0; x < LENGTH; ++x) {
            gradients[j][x] = (float)(((7 * j + 3 * x) % 11 - 3) / 10.0);
            sum[x] += gradients[j][x];
        }
    }

    float messages[WORKERS][BLOCK];
    for (int i = 0; i < WORKERS; ++i)
        check(fastgc_encode(FASTGC_FLOAT64, encoding[i], PARTITIONS, REDUCTION, FASTGC_FLOAT32, rows, LENGTH,
                            FASTGC_FLOAT32, messages[i], 0, 0));

    /* Workers 1 and 2 straggle. */
    const int64_t survivors[REDUCTION] = {0, 3};
    double weights[REDUCTION][REDUCTION];
    float decoded[LENGTH];
    const void* received[REDUCTION] = {messages[0], messages[3]};
    const fastgc_group group = {&weights[0][0], received, REDUCTION};
    check(fastgc_decoding_weights(&generator[0][0], WORKERS, REDUCTION, survivors, 1, &weights[0][0], 0));
    check(fastgc_decode(&group, 1, REDUCTION, FASTGC_FLOAT32, LENGTH, FASTGC_FLOAT32, decoded, 0));

    for (int i = 0; i < WORKERS; ++i) {
        char name[16];
        snprintf(name, sizeof name, "message %d", i);
        print_floats(name, messages[i], BLOCK);
    }
    printf("weights: %.5f %.5f %.5f %.5f\n", weights[0][0], weights[0][1], weights[1][0], weights[1][1]);
    print_floats("decoded", decoded, LENGTH);
    print_floats("sum", sum, LENGTH);
    return 0;
}
