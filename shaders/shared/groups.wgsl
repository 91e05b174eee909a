// Groups of #{M} weights as arrays of vec4 ("quads"): the flat invocation index and the choice of the top #{N}.
// A group of two fills half a quad; the kernels pad the other half so that it never wins.
#define_import_path maskwright::groups

const QUADS: u32 = (#{M}u + 3u) / 4u;

// Index of an invocation in a grid that is folded into two dimensions (65 535 workgroups are the limit of one).
fn flat_index(workgroup: vec3<u32>, grid: vec3<u32>, local: u32) -> u32 {
    return (workgroup.y * grid.x + workgroup.x) * #{WG}u + local;
}

fn count(b: vec4<bool>) -> vec4<u32> {
    return select(vec4(0u), vec4(1u), b);
}

// For each key of `mine`: how many keys of `other`, a later quad, beat it. A later key must be strictly greater.
fn beaten_by_later(mine: vec4<i32>, other: vec4<i32>) -> vec4<u32> {
    return count(other.xxxx > mine) + count(other.yyyy > mine) + count(other.zzzz > mine) + count(other.wwww > mine);
}

// The same for an earlier quad: a tie goes to the lower index.
fn beaten_by_earlier(mine: vec4<i32>, other: vec4<i32>) -> vec4<u32> {
    return count(other.xxxx >= mine) + count(other.yyyy >= mine) + count(other.zzzz >= mine) + count(other.wwww >= mine);
}

// How many keys of the same quad beat each key.
fn beaten_within(k: vec4<i32>) -> vec4<u32> {
    let next = count(k.yzww > k.xyzz); // 1 beats 0, 2 beats 1, 3 beats 2
    let skip = count(k.zwww > k.xyxx); // 2 beats 0, 3 beats 1, 3 beats 0
    return vec4(
        next.x + skip.x + skip.z,
        1u - next.x + next.y + skip.y,
        2u - skip.x - next.y + next.z,
        3u - skip.z - skip.y - next.z,
    );
}

fn pack(kept: vec4<bool>) -> u32 {
    let b = select(vec4(0u), vec4(1u, 2u, 4u, 8u), kept);
    return b.x | b.y | b.z | b.w;
}

// Bits of the #{N} greatest keys of one group, ties to the lower index; bit i = key i.
fn top(k: array<vec4<i32>, QUADS>) -> u32 {
    let n = vec4(#{N}u);
#if M <= 4
    return pack(beaten_within(k[0]) < n);
#else
#if M == 8
    return pack(beaten_within(k[0]) + beaten_by_later(k[0], k[1]) < n)
        | (pack(beaten_by_earlier(k[1], k[0]) + beaten_within(k[1]) < n) << 4u);
#else
    return pack(beaten_within(k[0]) + beaten_by_later(k[0], k[1]) + beaten_by_later(k[0], k[2])
            + beaten_by_later(k[0], k[3]) < n)
        | (pack(beaten_by_earlier(k[1], k[0]) + beaten_within(k[1]) + beaten_by_later(k[1], k[2])
            + beaten_by_later(k[1], k[3]) < n) << 4u)
        | (pack(beaten_by_earlier(k[2], k[0]) + beaten_by_earlier(k[2], k[1]) + beaten_within(k[2])
            + beaten_by_later(k[2], k[3]) < n) << 8u)
        | (pack(beaten_by_earlier(k[3], k[0]) + beaten_by_earlier(k[3], k[1]) + beaten_by_earlier(k[3], k[2])
            + beaten_within(k[3]) < n) << 12u);
#endif
#endif
}
