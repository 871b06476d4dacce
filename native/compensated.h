/* Sums that keep the rounding error of each addition. Include this header only in files that are
 * compiled with -ffp-contract=off. */
#ifndef GRADCLIP_COMPENSATED_H
#define GRADCLIP_COMPENSATED_H

/* Adds `term` to `*sum` and returns the rounding error of that addition (Knuth's two-sum). */
static inline double add_exactly(double *sum, double term) {
    double total = *sum + term;
    double added = total - *sum;
    double lost = (*sum - (total - added)) + (term - added);
    *sum = total;
    return lost;
}

#endif
