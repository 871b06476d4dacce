/* Sums of products of float32 values in packs: PACK doubles beside each other, which WIDEN reads.
 *
 * AVX2 widens four values of the memory in one instruction. From a loop over single values the compiler
 * makes one wide load, which it then takes apart, and that is half as fast.
 *
 * products.c includes this file once for each kind of pack. */

static TARGET double VERSION(sumsq)(const float *x, int64_t n) {
    enum { PACKS = LANES / PACK };
    VERSION(pack) sums[PACKS] = {0};
    double sum[LANES];
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < PACKS; j++) {
            VERSION(pack) four = WIDEN(x + i + j * PACK);
            sums[j] += four * four;
        }
    memcpy(sum, sums, sizeof sum);
    for (int j = 0; i < n; i++, j++) sum[j] += (double)x[i] * x[i];
    return add_up_lanes(sum, LANES);
}

/* With a quarter of the lanes: three kinds of sums, and two values of each, fill the registers. */
static TARGET void VERSION(products)(const float *x, const float *y, int64_t n, double stats[3]) {
    enum { FEW = 8, PACKS = FEW / PACK };
    VERSION(pack) xx[PACKS] = {0}, yy[PACKS] = {0}, xy[PACKS] = {0};
    double sums[3][FEW];
    int64_t i = 0;
    for (; i + FEW <= n; i += FEW)
        for (int j = 0; j < PACKS; j++) {
            VERSION(pack) a = WIDEN(x + i + j * PACK), b = WIDEN(y + i + j * PACK);
            xx[j] += a * a;
            yy[j] += b * b;
            xy[j] += a * b;
        }
    memcpy(sums[0], xx, sizeof xx);
    memcpy(sums[1], yy, sizeof yy);
    memcpy(sums[2], xy, sizeof xy);
    for (int j = 0; i < n; i++, j++) {
        double a = x[i], b = y[i];
        sums[0][j] += a * a;
        sums[1][j] += b * b;
        sums[2][j] += a * b;
    }
    for (int k = 0; k < 3; k++) stats[k] += add_up_lanes(sums[k], FEW);
}

#undef VERSION
#undef TARGET
#undef PACK
#undef WIDEN
