//! An input taken apart byte by byte. It never ends: behind its bytes are zeros, so that every input means something.

/// Reads an input from its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of it.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// Whether only the zeros behind it are left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next bytes, at most so many.
    pub fn bytes(&mut self, at_most: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(at_most.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// One of several things.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// A number: mostly one near to `expected` (a byte of 0 says exactly that), sometimes any.
    pub fn number(&mut self, expected: u64) -> u64 {
        match self.byte() {
            0x80 => u64::from_le_bytes(self.array()),
            0x81 => u64::MAX,
            0x82 => 1 << (self.byte() % 64),
            near => expected.wrapping_add_signed(i64::from(near.cast_signed())),
        }
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }
}
