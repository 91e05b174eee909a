// ProxSparse's proximal step (Liu et al., "ProxSparse: regularized learning of semi-structured sparsity masks", ICML 2025) on every
// group of four weights, in place:
//
//     w <- argmin_w  1/2 |w - z|^2 + lambda (|w0 w1 w2| + |w1 w2 w3| + |w2 w3 w0| + |w3 w0 w1|)
//
// With magnitudes z1 >= z2 >= z3 >= z4 the best of three candidates: (z1, z2, 0, 0), and the limits of
// w_i <- max(z_i - lambda * (sum of the products of two others), 0) over the first three and over all four weights, swept from the last
// to the first. The sweeps start at the best multiple of z: from w = 0, as the paper has it, they end in (z1, z2, 0, 0) where all are alike and
// lambda z1 is just above 1, with an objective up to 4 % of z1^2 too high. Each sweep lowers the objective, and where it is convex there
// is one minimum. In units of z1, so that one stopping rule does for all scales; at most SWEEPS sweeps, or a change of all four
// below STOP. Signs and places are restored. Weights of the first candidate keep their bits.
//
// W [rows, k4] vec4 f32.
// Dispatch: one invocation per group, the grid folded into two dimensions.
// Needs: finite weights, lambda >= 0.

const SWEEPS: u32 = 100u;
const STOP: f32 = 2.4e-7;

struct Params {
    groups: u32,
    first: u32,  // vec4 of W
    lambda: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> w: array<vec4<f32>>;

// 1/2 |u - z|^2 + l R(u)
fn objective(u: vec4<f32>, z: vec4<f32>, l: f32) -> f32 {
    let d = u - z;
    let r = u.x * u.y * (u.z + u.w) + u.z * u.w * (u.x + u.y);
    return 0.5 * dot(d, d) + l * r;
}

// The limit of the sweeps; `all` = 0 leaves out the fourth weight.
fn fixed_point(given: vec4<f32>, l: f32, all: f32) -> vec4<f32> {
    let z = vec4(given.xyz, all * given.w);
    // u = t z, t the root of 3 l R(z) t^2 + |z|^2 t - |z|^2
    let square = dot(z, z);
    let r = 3.0 * objective(z, z, l);
    var u = z * (2.0 * square / (square + sqrt(square * (square + 4.0 * r))));
    var change = 1.0;
    for (var sweep = 0u; sweep < SWEEPS && change >= STOP; sweep += 1u) {
        let old = u;
        u.w = max(z.w - l * (u.x * u.y + (u.x + u.y) * u.z), 0.0);
        u.z = max(z.z - l * (u.x * u.y + (u.x + u.y) * u.w), 0.0);
        u.y = max(z.y - l * (u.z * u.w + (u.z + u.w) * u.x), 0.0);
        u.x = max(z.x - l * (u.z * u.w + (u.z + u.w) * u.y), 0.0);
        let d = abs(u - old);
        change = (d.x + d.y) + (d.z + d.w);
    }
    return u;
}

@compute @workgroup_size(#{LANES})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * #{LANES}u + lane;
    if i < p.groups {
        let given = w[p.first + i];
        let size = abs(given);
        // place of each weight in the order of magnitudes, ties to the lower index
        let place = vec4(
            count(size.yzw > size.xxx),
            count(vec3(size.x >= size.y, size.z > size.y, size.w > size.y)),
            count(vec3(size.x >= size.z, size.y >= size.z, size.w > size.z)),
            count(size.xyz >= size.www),
        );
        let sorted = vec4(
            dot(size, select(vec4<f32>(), vec4(1.0), place == vec4(0u))),
            dot(size, select(vec4<f32>(), vec4(1.0), place == vec4(1u))),
            dot(size, select(vec4<f32>(), vec4(1.0), place == vec4(2u))),
            dot(size, select(vec4<f32>(), vec4(1.0), place == vec4(3u))),
        );
        let top = sorted.x;
        if top > 0.0 {
            let z = sorted / top;
            let l = min(p.lambda * top, 1.0e30);
            let two = vec4(z.xy, 0.0, 0.0);
            let three = fixed_point(z, l, 0.0);
            let four = fixed_point(z, l, 1.0);
            let cost_two = objective(two, z, l);
            let cost_three = objective(three, z, l);
            let cost_four = objective(four, z, l);
            let exact = cost_two <= min(cost_three, cost_four);
            let best = select(four, three, cost_three <= cost_four) * top;
            let left = vec4(
                pick(best, place.x), pick(best, place.y), pick(best, place.z), pick(best, place.w));
            let signed = select(left, -left, given < vec4<f32>());
            w[p.first + i] = select(
                select(vec4<f32>(), signed, left > vec4<f32>()),
                select(vec4<f32>(), given, place < vec4(2u)),
                exact);
        }
    }
}

fn count(b: vec3<bool>) -> u32 {
    let n = select(vec3(0u), vec3(1u), b);
    return n.x + n.y + n.z;
}

fn pick(v: vec4<f32>, place: u32) -> f32 {
    return select(select(v.w, v.z, place == 2u), select(v.y, v.x, place == 0u), place < 2u);
}
