// The #{COUNT} masks of a group of #{M} weights of which #{N} are kept, and what a softmax over them mixes.
//
// They are numbered as src/mask/rank.rs ranks them: in lexicographic order of the kept positions. Read with the first weight as the
// highest bit the masks descend, so their complements ascend: next_pattern is Gosper's step to the next number with as many ones
// (HAKMEM 175). COUNT is even for every M that is a power of two: logits are loaded in pairs.
#define_import_path maskwright::patterns

#import maskwright::philox::philox4x32
#import maskwright::gumbel::gumbel4

const PAIRS: u32 = #{COUNT}u / 2u;
// Pairs with room for the noise, which comes in fours; what is behind PAIRS is not read.
const SLOTS: u32 = (#{COUNT}u + 3u) / 4u * 2u;
#if M > 4
const PATTERN_QUADS: u32 = #{M}u / 4u;
#else
const PATTERN_QUADS: u32 = 1u;
#endif

// What mask 0 prunes, first weight in bit M - 1.
const FIRST_PRUNED: u32 = (1u << (#{M}u - #{N}u)) - 1u;

fn next_pattern(pruned: u32) -> u32 {
    let t = pruned | (pruned - 1u);
    return (t + 1u) | (((~t & (t + 1u)) - 1u) >> (firstTrailingBit(pruned) + 1u));
}

// Kept weights, bit i = weight i.
fn kept_bits(pruned: u32) -> u32 {
    return reverseBits((~pruned) << (32u - #{M}u));
}

fn among(kept: u32, q: u32) -> vec4<bool> {
    return (vec4(kept >> (q * 4u)) & vec4(1u, 2u, 4u, 8u)) != vec4(0u);
}

// Adds scale * Gumbel to the keys of a group: word k % 4 of the counter (step, projection, group, 32 + k / 4) for pattern k.
// fours = ceil(COUNT / 4) comes from a parameter, so that the loop cannot be unrolled: what makes one noise is long.
fn add_noise(y: ptr<function, array<vec2<f32>, SLOTS>>, at: vec3<u32>, seed: vec2<u32>, scale: f32, fours: u32) {
#if COUNT > 8
    for (var q = 0u; q < fours; q += 1u) {
        let noise = vec4<f32>(gumbel4(philox4x32(vec4(at, 32u + q), seed))) * scale;
        (*y)[2u * q] += noise.xy;
        (*y)[2u * q + 1u] += noise.zw;
    }
#else
    // Written out: what a loop indexes is not kept in registers.
    let first = vec4<f32>(gumbel4(philox4x32(vec4(at, 32u), seed))) * scale;
    (*y)[0] += first.xy;
    (*y)[1] += first.zw;
#if COUNT > 4
    let next = vec4<f32>(gumbel4(philox4x32(vec4(at, 33u), seed))) * scale;
    (*y)[2] += next.xy;
    (*y)[3] += next.zw;
#endif
#endif
}

// The softmax of keys in units of ln 2, in place.
fn soften(y: ptr<function, array<vec2<f32>, SLOTS>>) {
    var top = (*y)[0];
    for (var k = 1u; k < PAIRS; k += 1u) {
        top = max(top, (*y)[k]);
    }
    let most = max(top.x, top.y);
    var sum = vec2<f32>();
    for (var k = 0u; k < PAIRS; k += 1u) {
        let e = exp2((*y)[k] - vec2(most));
        (*y)[k] = e;
        sum += e;
    }
    let share = 1.0 / (sum.x + sum.y);
    for (var k = 0u; k < PAIRS; k += 1u) {
        (*y)[k] *= share;
    }
}

// sum_k y_k S_k; for M = 2 in the first two components.
fn mixed(y: ptr<function, array<vec2<f32>, SLOTS>>) -> array<vec4<f32>, PATTERN_QUADS> {
    var out: array<vec4<f32>, PATTERN_QUADS>;
    var pruned = FIRST_PRUNED;
    for (var k = 0u; k < PAIRS; k += 1u) {
        let one = kept_bits(pruned);
        let two = kept_bits(next_pattern(pruned));
        pruned = next_pattern(next_pattern(pruned));
        let weight = (*y)[k];
        for (var q = 0u; q < PATTERN_QUADS; q += 1u) {
            out[q] += select(vec4<f32>(), vec4(weight.x), among(one, q))
                + select(vec4<f32>(), vec4(weight.y), among(two, q));
        }
    }
    return out;
}

fn inner(g: ptr<function, array<vec4<f32>, PATTERN_QUADS>>, kept: u32) -> f32 {
    var sum = vec4<f32>();
    for (var q = 0u; q < PATTERN_QUADS; q += 1u) {
        sum += select(vec4<f32>(), (*g)[q], among(kept, q));
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// y_k (<S_k, g> - sum_l y_l <S_l, g>), the gradient by the keys (in natural units), in place of y.
fn unmix(y: ptr<function, array<vec2<f32>, SLOTS>>, g: ptr<function, array<vec4<f32>, PATTERN_QUADS>>, mean: f32) {
    var pruned = FIRST_PRUNED;
    for (var k = 0u; k < PAIRS; k += 1u) {
        let one = inner(g, kept_bits(pruned));
        let two = inner(g, kept_bits(next_pattern(pruned)));
        pruned = next_pattern(next_pattern(pruned));
        (*y)[k] *= vec2(one, two) - vec2(mean);
    }
}
