// Sums over the vocabulary in levels: what a level has is added to the one above it whenever the rows pass a multiple of 1024, of 16 384
// and of 131 072, so that no running sum has more than some dozens of terms. One running sum of 150 000 exponentials in f32 is off by 1e-4
// where its roundings have one sign. No compensated sum: what it keeps is what a compiler that reassociates takes away.
//
// Also the scale between exponentials that are taken from different logits.
#define_import_path maskwright::levels

struct Levels {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// `sums` of the rows before `start`, and `part`, that of the rows start..end.
fn levels_added(sums: Levels, part: vec4<f32>, start: u32, end: u32) -> Levels {
    var out = sums;
    out.a += part;
    if (start >> 10u) != (end >> 10u) {
        out.b += out.a;
        out.a = vec4<f32>();
    }
    if (start >> 14u) != (end >> 14u) {
        out.c += out.b;
        out.b = vec4<f32>();
    }
    if (start >> 17u) != (end >> 17u) {
        out.d += out.c;
        out.c = vec4<f32>();
    }
    return out;
}

fn levels_scaled(sums: Levels, by: vec4<f32>) -> Levels {
    return Levels(sums.a * by, sums.b * by, sums.c * by, sums.d * by);
}

fn levels_total(sums: Levels) -> vec4<f32> {
    return (sums.a + sums.b) + (sums.c + sums.d);
}

// exp(from - to), and 1 where they are the same, whatever a driver's exponential makes of 0.
fn rescale(origin: vec4<f32>, goal: vec4<f32>) -> vec4<f32> {
    return select(exp(origin - goal), vec4<f32>(1.0), origin == goal);
}
