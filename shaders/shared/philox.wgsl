// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
// 1, 2, 3" (SC11): four 32-bit words from a 128-bit counter and a 64-bit key, with no state to keep. Integer arithmetic
// is exact in WGSL, so the words are the same on every vendor. Its twin is src/mask/philox.rs.
#define_import_path maskwright::philox

// The upper half of the 64-bit product. WGSL has no 32x32->64 multiply: it is put together from 16-bit halves, none of
// whose partial sums overflows 32 bits.
fn mul_hi(a: u32, b: u32) -> u32 {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let m1 = ah * bl + ((al * bl) >> 16u);
    let m2 = al * bh + (m1 & 0xffffu);
    return ah * bh + (m1 >> 16u) + (m2 >> 16u);
}

// mul_hi of each component.
fn mul_hi4(a: vec4<u32>, b: vec4<u32>) -> vec4<u32> {
    let low = vec4(0xffffu);
    let half = vec4(16u);
    let al = a & low;
    let ah = a >> half;
    let bl = b & low;
    let bh = b >> half;
    let m1 = ah * bl + ((al * bl) >> half);
    let m2 = al * bh + (m1 & low);
    return ah * bh + (m1 >> half) + (m2 >> half);
}

fn philox_round(c: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    return vec4(
        mul_hi(0xcd9e8d57u, c.z) ^ c.y ^ key.x,
        0xcd9e8d57u * c.z,
        mul_hi(0xd2511f53u, c.x) ^ c.w ^ key.y,
        0xd2511f53u * c.x,
    );
}

// Four random words of one counter.
fn philox4x32(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    // The key of round k is key + k * weyl (golden ratio and sqrt(3) - 1). Written out: ten rounds, no loop to unroll.
    let weyl = vec2(0x9e3779b9u, 0xbb67ae85u);
    var c = philox_round(counter, key);
    c = philox_round(c, key + weyl);
    c = philox_round(c, key + weyl * 2u);
    c = philox_round(c, key + weyl * 3u);
    c = philox_round(c, key + weyl * 4u);
    c = philox_round(c, key + weyl * 5u);
    c = philox_round(c, key + weyl * 6u);
    c = philox_round(c, key + weyl * 7u);
    c = philox_round(c, key + weyl * 8u);
    return philox_round(c, key + weyl * 9u);
}
