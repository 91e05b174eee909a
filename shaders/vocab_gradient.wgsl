// logits[r, t] = scale (exp(logits[r, t] - near[t]) / l[t] - [first + r is the target of t]), in place: the gradient of the loss
// with respect to one chunk of the logits, after vocab_reduce.wgsl has left near and l of all chunks. Tokens without a target
// and rows beyond the vocabulary get zeros. With CAP a logit is cap tanh(x / cap) of the x in the buffer, and the gradient that by x: times
// 1 - tanh(x / cap)^2.
//
// logits [count, t4] vec4 over tokens; targets [t4] vec4<u32> of vocabulary rows (all bits set = none); state [7, t4]: -, near, four levels of l, -.
// An invocation holds a vec4 of tokens and makes 16 rows.
// Dispatch: [ceil(t4 / LANES), ceil(count / (16 SLICES)), 1], workgroup LANES x SLICES.
#import maskwright::levels::{Levels, levels_total}
#ifdef CAP
#import maskwright::cap::{capped, cap_slope}
#endif

struct Params {
    rows: u32,     // rows of this chunk within the vocabulary
    count: u32,    // rows with those that pad it
    t4: u32,
    first: u32,    // vocabulary row of the chunk's row 0
    scale: f32,
    cap: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<vec4<f32>>;  // [count, t4]
@group(0) @binding(2) var<storage, read> targets: array<vec4<u32>>;       // [t4]
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;         // [7, t4]

const ROWS = 16u;

@compute @workgroup_size(#{LANES}, #{SLICES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let t = wg.x * #{LANES}u + local.x;
    let start = (wg.y * #{SLICES}u + local.y) * ROWS;
    if t < p.t4 {
        let goal = targets[t];
        let near = state[p.t4 + t];
        let l = levels_total(
            Levels(state[2u * p.t4 + t], state[3u * p.t4 + t], state[4u * p.t4 + t], state[5u * p.t4 + t]));
        let has = goal != vec4<u32>(0xffffffffu);
        let scale = select(vec4<f32>(), vec4<f32>(p.scale), has);
        let share = scale / l;
        let end = min(start + ROWS, p.count);
        for (var r = start; r < end; r++) {
            let i = r * p.t4 + t;
            let hit = select(vec4<f32>(), scale, goal == vec4<u32>(p.first + r));
            // A select, not a product with zero: what pads the chunk may be NaN.
#ifdef CAP
            let x = logits[i];
            let d = (exp(capped(x, p.cap) - near) * share - hit) * cap_slope(x, p.cap);
#else
            let d = exp(logits[i] - near) * share - hit;
#endif
            logits[i] = select(vec4<f32>(), d, has & vec4<bool>(r < p.rows));
        }
    }
}
