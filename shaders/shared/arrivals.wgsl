// One draw of the #{N} kept weights of a group of 16, and what each weight's own noise decides in it.
//
// With keys a_i = logit_i + Gumbel the N greatest are kept: the law of N draws without replacement (a key is minus the logarithm of the
// time of an exponential clock with the rate e^logit). Given the noise of all others, weight i is kept where its key is above the N-th
// greatest key of the others, which is the next one below the kept where i is kept, and the last of the kept elsewhere. So with
// u_i = exp(logit_i - that key) it is kept with the chance 1 - e^-u_i, and the derivative of that by logit_i is u_i e^-u_i: at
// most 1 / e, nothing that overflows.
//
// Keys are those of shared/gumbel.wgsl in fixed point, ties to the lower index: word i % 4 of Philox4x32-10 with the counter
// (step, projection, group, 64 + 4 draw + i / 4), groups counted row by row over the whole tensor.
#define_import_path maskwright::arrivals

#import maskwright::groups::{QUADS, top}
#import maskwright::gumbel::{fixed4, gumbel4}
#import maskwright::philox::philox4x32

struct Draw {
    kept: u32,                          // bit i = weight i
    last: u32,                          // the kept weight with the least key
    next: u32,                          // the other one with the greatest
    odds: array<vec4<f32>, QUADS>,      // u_i
}

fn draw(logits: array<vec4<f32>, QUADS>, at: vec3<u32>, seed: vec2<u32>, number: u32) -> Draw {
    var l = logits;
    var keys: array<vec4<i32>, QUADS>;
    for (var q = 0u; q < QUADS; q += 1u) {
        keys[q] = fixed4(l[q]) + gumbel4(philox4x32(vec4(at, 64u + QUADS * number + q), seed));
    }
    var out: Draw;
    out.kept = top(keys);
    var least = 2147483647;
    var most = -2147483647;
    for (var i = 0u; i < #{M}u; i += 1u) {
        let key = keys[i / 4u][i % 4u];
        if (out.kept >> i & 1u) == 1u {
            // of equal keys the higher index is the last
            if key <= least {
                least = key;
                out.last = i;
            }
        } else if key > most {
            most = key;
            out.next = i;
        }
    }
    let bounds = vec2<f32>(f32(most), f32(least)) / 16777216.0;
    for (var q = 0u; q < QUADS; q += 1u) {
        let kept = (vec4(out.kept >> (4u * q)) & vec4(1u, 2u, 4u, 8u)) != vec4(0u);
        // e^-u is 0 from there on
        out.odds[q] = exp(min(l[q] - select(vec4(bounds.y), vec4(bounds.x), kept), vec4(20.0)));
    }
    return out;
}
