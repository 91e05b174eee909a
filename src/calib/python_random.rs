//! The random numbers of Python's `random` module, so that a seed picks the same windows here as in the Python tools.
//!
//! The generator is the Mersenne Twister MT19937 of Matsumoto and Nishimura (1998) with the seeding by an array that they
//! added in 2002. How a seed becomes that array and how a word becomes an integer below a bound is CPython's: `random_seed`
//! and `getrandbits` in `Modules/_randommodule.c`, `_randbelow_with_getrandbits` in `Lib/random.py`. Neither has changed
//! since Python 3.2.

use std::num::NonZero;

/// Words of state.
const N: usize = 624;
/// Distance of the two words that a new one is mixed from.
const M: usize = 397;

/// `random.Random(seed)` of CPython for an integer seed.
#[derive(Clone)]
pub struct PythonRandom {
    state: [u32; N],
    /// The next word to hand out; `N` when all are used up.
    next: usize,
}

impl std::fmt::Debug for PythonRandom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PythonRandom").field("next", &self.next).finish_non_exhaustive()
    }
}

impl PythonRandom {
    /// The generator after `random.seed(seed)`. Python drops the sign of a seed, so its seed -1 is 1 here.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // The seed in words of 32 bits, the low one first, without leading zeros but at least one word.
        let words = [seed as u32, (seed >> 32) as u32];
        let key = if words[1] == 0 { &words[..1] } else { &words[..] };

        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = folded(state[i - 1]).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        // One walk over the state mixes the key in, a second one mixes the state with itself.
        let mut at = 1;
        for j in (0..key.len()).cycle().take(N) {
            let mixed = state[at] ^ folded(state[at - 1]).wrapping_mul(1_664_525);
            at = put(&mut state, at, mixed.wrapping_add(key[j]).wrapping_add(j as u32));
        }
        for _ in 1..N {
            let mixed = state[at] ^ folded(state[at - 1]).wrapping_mul(1_566_083_941);
            at = put(&mut state, at, mixed.wrapping_sub(at as u32));
        }
        state[0] = 1 << 31;
        Self { state, next: N }
    }

    /// The next 32 random bits: `getrandbits(32)`.
    pub fn word(&mut self) -> u32 {
        if self.next == N {
            self.renew();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `getrandbits(bits)`: an integer of at most `bits` random bits, of which there may be 64 at most (more count as 64).
    ///
    /// Up to 32 bits are the high bits of one word. More take two words, the first of which is the low half.
    pub fn getrandbits(&mut self, bits: u32) -> u64 {
        match bits {
            0 => 0,
            1..=32 => u64::from(self.word() >> (32 - bits)),
            _ => {
                let low = u64::from(self.word());
                low | (self.getrandbits(bits.min(64) - 32) << 32)
            }
        }
    }

    /// `randint(0, n - 1)`, which is `randrange(n)`: an integer below `n`, all equally likely.
    ///
    /// As many bits as `n` has (not `n - 1`: a power of two takes one more than it needs) are drawn until they are below it.
    pub fn randbelow(&mut self, n: NonZero<u64>) -> u64 {
        let bits = u64::BITS - n.leading_zeros();
        loop {
            let drawn = self.getrandbits(bits);
            if drawn < n.get() {
                return drawn;
            }
        }
    }

    /// Makes the next `N` words.
    fn renew(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }
}

fn folded(word: u32) -> u32 {
    word ^ (word >> 30)
}

/// Sets word `at` and gives the place of the next one. At the end, the last word is carried to the front, where the next
/// one looks for its neighbour.
fn put(state: &mut [u32; N], at: usize, word: u32) -> usize {
    state[at] = word;
    if at + 1 < N {
        return at + 1;
    }
    state[0] = word;
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(rng: &mut PythonRandom, n: u64) -> u64 {
        rng.randbelow(NonZero::new(n).unwrap())
    }

    fn draws<const COUNT: usize>(seed: u64, n: u64) -> [u64; COUNT] {
        let mut rng = PythonRandom::new(seed);
        std::array::from_fn(|_| below(&mut rng, n))
    }

    fn bits<const COUNT: usize>(seed: u64, bits: u32) -> [u64; COUNT] {
        let mut rng = PythonRandom::new(seed);
        std::array::from_fn(|_| rng.getrandbits(bits))
    }

    // All expected numbers are printed by CPython 3.11, as the first lines of each test say.

    #[test]
    fn words_equal_pythons() {
        // random.seed(seed); random.getrandbits(32)
        assert_eq!(bits(0, 32), [3_626_764_237, 1_654_615_998, 3_255_389_356, 3_823_568_514]);
        assert_eq!(bits(1, 32), [577_090_037, 2_444_712_010, 3_639_700_191, 3_445_702_192]);
        assert_eq!(bits(42, 32), [2_746_317_213, 478_163_327, 107_420_369, 3_184_935_163]);
        assert_eq!(bits(1 << 32, 32), [485_306_839, 1_508_871_100, 1_794_561_286]);
        assert_eq!(bits(u64::MAX, 32), [93_740_670, 1_068_495_656, 1_452_108_352]);
        // The 2000th, after the state was renewed three times.
        let mut rng = PythonRandom::new(0);
        assert_eq!((0..2000).map(|_| rng.word()).last(), Some(3_908_016_617));
    }

    #[test]
    fn bits_of_every_width_are_composed_as_in_python() {
        // random.seed(0); random.getrandbits(bits)
        assert_eq!(bits(0, 1), [1, 0, 1, 1, 0, 0, 0, 1]);
        assert_eq!(bits(0, 33), [3_626_764_237, 7_550_356_652, 1_806_341_205, 5_407_006_266]);
        assert_eq!(
            bits(0, 64),
            [
                7_106_521_602_475_165_645,
                16_422_101_724_900_707_500,
                746_805_015_404_516_437,
                17_809_683_713_383_489_082
            ]
        );
        assert_eq!(
            bits::<4>(0, 65),
            [
                7_106_521_602_475_165_645,
                16_422_101_724_900_707_500,
                746_805_015_404_516_437,
                17_809_683_713_383_489_082
            ]
        );
        let mut rng = PythonRandom::new(0);
        assert_eq!(rng.getrandbits(0), 0);
        assert_eq!(rng.getrandbits(32), 3_626_764_237, "no bits draw no word");
    }

    #[test]
    fn integers_below_a_bound_equal_pythons() {
        // random.seed(seed); random.randint(0, n - 1)
        assert_eq!(draws(0, 10), [6, 6, 0, 4, 8, 7, 6, 4, 7, 5, 9, 3, 8, 2, 4, 2]);
        assert_eq!(draws(0, 356_317), [201_979, 220_500, 21_225, 135_746, 268_055, 254_766, 212_302]);
        assert_eq!(draws(1, 356_317), [70_445, 298_426, 33_086, 133_729, 61_823, 259_750, 235_662]);
        assert_eq!(draws(42, 2_428_601), [466_956, 104_902, 1_153_556, 1_027_150, 936_213, 585_264, 429_895]);
        assert_eq!(draws(0, 8), [6, 6, 0, 4, 7, 6, 4, 7, 5, 3]);
        assert_eq!(
            draws(0, (1 << 40) + 1),
            [849_735_321_549, 87_705_687_125, 1_067_347_797_602, 788_025_983_492]
        );
        assert_eq!(
            draws(0, u64::MAX),
            [7_106_521_602_475_165_645, 16_422_101_724_900_707_500, 746_805_015_404_516_437]
        );
        // One is a power of two, too: bits are drawn until one is zero.
        let mut rng = PythonRandom::new(0);
        assert_eq!([0; 3].map(|_| below(&mut rng, 1)), [0; 3]);
        assert_eq!(rng.word(), 1_112_038_970);
    }

    #[test]
    #[cfg_attr(not(have_shared), ignore = "needs ../shared")]
    fn all_stored_draws_are_repeated() {
        use serde_json::Value;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/vectors/rng/python_random.json");
        let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let ints = |v: &Value| v.as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect::<Vec<_>>();
        let (mut bounded, mut plain) = (0, 0);
        for entry in all["vectors"].as_array().unwrap() {
            let mut rng = PythonRandom::new(entry["seed"].as_u64().unwrap());
            if let Some(n) = entry["n"].as_u64() {
                let expected = ints(&entry["draws_randint_0_to_n_minus_1"]);
                assert_eq!(
                    expected.iter().map(|_| below(&mut rng, n)).collect::<Vec<_>>(),
                    expected,
                    "{entry}"
                );
                bounded += 1;
            } else {
                let expected = ints(&entry["getrandbits32"]);
                assert_eq!(
                    expected.iter().map(|_| rng.getrandbits(32)).collect::<Vec<_>>(),
                    expected,
                    "{entry}"
                );
                plain += 1;
            }
        }
        assert!(bounded >= 9 && plain >= 3);
    }
}
