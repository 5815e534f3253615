/* The scale searches of the 256-weight grids (kgrids.py), eight groups of weights side by side in one vector register.
 *
 * Each lane does, in the same order, what ggml's make_qkx2_quants, make_qx_quants and make_q3_quants do for one group,
 * so that every value is equal to theirs. Compile with -ffp-contract=off: a fused multiply-add would round once less.
 * x: n groups of `rows` weights, one after the other.
 */
#include <stdint.h>
#include <string.h>

#define LANES 8
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE vf of(float value) { return value - (vf){0}; }
INLINE vf pick(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf least(vf a, vf b) { return pick(a < b, a, b); }
INLINE vf most(vf a, vf b) { return pick(a > b, a, b); }

/* ggml's nearest_int: half to even through the mantissa, with its wrap-around beyond 2^22. */
INLINE vi nearest(vf x) { return (((vi)(x + of(12582912.0f))) & 0x007fffff) - 0x00400000; }

INLINE vf clamped(vi q, int low, int high) {
    vi small = q < low, large = q > high;
    q = (small & low) | (~small & q);
    q = (large & high) | (~large & q);
    return __builtin_convertvector(q, vf);
}

INLINE void load(const float *from, int rows, int lanes, vf *to) {
    for (int i = 0; i < rows; i++)
        for (int lane = 0; lane < LANES; lane++) to[i][lane] = from[(lane < lanes ? lane : 0) * rows + i];
}

/* scales, minima: n. candidates: numerators of the search. absolute: weights |x| and absolute error, else the root mean
 * square of the group plus |x|, and squared error. */
FAST void fit_scale_and_min(const float *x, long n, int rows, int levels, const float *candidates, int count,
                            int absolute, float *scales, float *minima) {
    vf v[32], w[32], q[32];
    for (long start = 0; start < n; start += LANES) {
        int lanes = n - start < LANES ? (int)(n - start) : LANES;
        load(x + start * rows, rows, lanes, v);
        vf mean = v[0] * v[0];
        for (int i = 1; i < rows; i++) mean += v[i] * v[i];
        for (int lane = 0; lane < LANES; lane++) mean[lane] = absolute ? 0 : __builtin_sqrtf(mean[lane] / rows);
        for (int i = 0; i < rows; i++) w[i] = mean + most(v[i], -v[i]);
        vf low = v[0], high = v[0], sum_w = w[0], sum_x = w[0] * v[0];
        for (int i = 1; i < rows; i++) {
            low = least(v[i], low);
            high = most(v[i], high);
            sum_w += w[i];
            sum_x += w[i] * v[i];
        }
        low = pick(low > 0, of(0), low);
        vi flat = high == low;
        vf first = low, inverse = of((float)levels) / (high - low), scale = of(1.0f) / inverse, best = of(0);
        for (int i = 0; i < rows; i++) {
            vf miss = scale * clamped(nearest(inverse * (v[i] - low)), 0, levels) + low - v[i];
            best += w[i] * (absolute ? most(miss, -miss) : miss * miss);
        }
        for (int c = 0; c < count; c++) {
            vf sum_q = of(0), sum_qq = of(0), sum_qx = of(0), error = of(0);
            inverse = of(candidates[c]) / (high - low); /* low is the best so far */
            for (int i = 0; i < rows; i++) {
                q[i] = clamped(nearest(inverse * (v[i] - low)), 0, levels);
                vf wq = w[i] * q[i];
                sum_q += wq;
                sum_qq += wq * q[i];
                sum_qx += wq * v[i];
            }
            vf det = sum_w * sum_qq - sum_q * sum_q;
            vf new_scale = (sum_w * sum_qx - sum_x * sum_q) / det, new_low = (sum_qq * sum_x - sum_q * sum_qx) / det;
            vi above = new_low > 0;
            new_scale = pick(above, sum_qx / sum_qq, new_scale);
            new_low = pick(above, of(0), new_low);
            for (int i = 0; i < rows; i++) {
                vf miss = new_scale * q[i] + new_low - v[i];
                error += w[i] * (absolute ? most(miss, -miss) : miss * miss);
            }
            vi better = (det > 0) & (error < best);
            best = pick(better, error, best);
            scale = pick(better, new_scale, scale);
            low = pick(better, new_low, low);
        }
        scale = pick(flat, of(0), scale);
        low = -pick(flat, first, low);
        memcpy(scales + start, &scale, sizeof(float) * lanes);
        memcpy(minima + start, &low, sizeof(float) * lanes);
    }
}

/* The weights are x^2 (rmse_type 1). candidates: their first is tried before the others. */
FAST void fit_scale(const float *x, long n, int rows, int levels, const float *candidates, int count, float tiny,
                    float *scales) {
    vf v[32], w[32], wx[32];
    for (long start = 0; start < n; start += LANES) {
        int lanes = n - start < LANES ? (int)(n - start) : LANES;
        load(x + start * rows, rows, lanes, v);
        vf largest = of(0), peak = of(0), scale = of(0), best = of(0);
        for (int i = 0; i < rows; i++) {
            vf size = most(v[i], -v[i]);
            vi larger = size > largest;
            largest = pick(larger, size, largest);
            peak = pick(larger, v[i], peak);
            w[i] = v[i] * v[i];
            wx[i] = w[i] * v[i];
        }
        for (int c = 0; c < count; c++) {
            vf sum_qx = of(0), sum_qq = of(0), inverse = of(-candidates[c]) / peak;
            for (int i = 0; i < rows; i++) {
                vf q = clamped(nearest(inverse * v[i]), -levels, levels - 1);
                sum_qx += wx[i] * q;
                sum_qq += w[i] * q * q;
            }
            vf ratio = sum_qx / sum_qq;
            vi better = (sum_qq > 0) & (sum_qx * sum_qx > best * sum_qq);
            best = pick(better, ratio * sum_qx, best);
            scale = pick(better, ratio, scale);
        }
        scale = pick(largest < of(tiny), of(0), scale);
        memcpy(scales + start, &scale, sizeof(float) * lanes);
    }
}

/* As fit_scale, but one q after another is moved where that is better, in five passes (ggml: make_q3_quants). */
FAST void improve_scale(const float *x, long n, int rows, int levels, float tiny, float *scales) {
    vf v[32], w[32], wx[32], q[32];
    for (long start = 0; start < n; start += LANES) {
        int lanes = n - start < LANES ? (int)(n - start) : LANES;
        load(x + start * rows, rows, lanes, v);
        vf largest = of(0), peak = of(0), sum_qx = of(0), sum_qq = of(0);
        for (int i = 0; i < rows; i++) {
            vf size = most(v[i], -v[i]);
            vi larger = size > largest;
            largest = pick(larger, size, largest);
            peak = pick(larger, v[i], peak);
            w[i] = v[i] * v[i];
            wx[i] = w[i] * v[i];
        }
        vf inverse = of((float)-levels) / peak;
        for (int i = 0; i < rows; i++) {
            q[i] = clamped(nearest(inverse * v[i]), -levels, levels - 1);
            sum_qx += wx[i] * q[i];
            sum_qq += w[i] * q[i] * q[i];
        }
        for (int pass = 0; pass < 5; pass++) {
            vi moves = {0};
            for (int i = 0; i < rows; i++) {
                vf rest_qx = sum_qx - wx[i] * q[i], rest_qq = sum_qq - w[i] * q[i] * q[i];
                vf moved = clamped(nearest(v[i] * rest_qq / rest_qx), -levels, levels - 1);
                vf new_qx = rest_qx + wx[i] * moved, new_qq = rest_qq + w[i] * moved * moved;
                vi better = (rest_qx > 0) & (moved != q[i]) & (new_qq > 0);
                better &= new_qx * new_qx * sum_qq > sum_qx * sum_qx * new_qq;
                moves |= better;
                q[i] = pick(better, moved, q[i]);
                sum_qx = pick(better, new_qx, sum_qx);
                sum_qq = pick(better, new_qq, sum_qq);
            }
            int any = 0;
            for (int lane = 0; lane < LANES; lane++) any |= moves[lane];
            if (!any) break;
        }
        vf scale = pick((largest < of(tiny)) | ~(sum_qq > 0), of(0), sum_qx / sum_qq);
        memcpy(scales + start, &scale, sizeof(float) * lanes);
    }
}

/* The values scale * q - minimum nearest to x, with least <= q <= largest. */
FAST void round_to(const float *x, const float *scales, const float *minima, long n, int rows, int low, int high,
                   float *out) {
    for (long g = 0; g < n; g++) {
        vf minimum = of(minima[g]), scale = of(scales[g]), step = of(scales[g] == 0 ? 1.0f : scales[g]);
        for (int i = 0; i < rows; i += LANES) {
            vf v;
            memcpy(&v, x + g * rows + i, sizeof(v));
            v = clamped(nearest((v + minimum) / step), low, high) * scale - minimum;
            memcpy(out + g * rows + i, &v, sizeof(v));
        }
    }
}
