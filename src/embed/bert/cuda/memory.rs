//! Arrays in a device's memory: a piece of it, and what it holds.

use std::marker::PhantomData;

use super::{Device, DeviceError};

/// A number that devices hold, little-endian as they and the processors that
/// they stand beside have it.
pub(super) trait Number: Copy {
    const BYTES: usize;
    fn put(self, bytes: &mut Vec<u8>);
}

macro_rules! number {
    ($($number:ty),*) => {$(
        impl Number for $number {
            const BYTES: usize = size_of::<$number>();

            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

number!(f32, i32, u16);

/// `len` numbers on a device; bf16 are `u16`.
pub(super) struct Array<M, T> {
    memory: M,
    len: usize,
    holds: PhantomData<T>,
}

impl<M, T: Number> Array<M, T> {
    /// Room for `len` numbers, which are anything.
    pub(super) fn new<D: Device<Memory = M>>(device: &D, len: usize) -> Result<Self, DeviceError> {
        // None of no bytes: devices refuse that.
        let bytes = len.max(1).saturating_mul(T::BYTES);
        Ok(Self { memory: device.allocate(bytes)?, len, holds: PhantomData })
    }

    /// A copy of `numbers` on the device.
    pub(super) fn of<D: Device<Memory = M>>(device: &D, numbers: &[T]) -> Result<Self, DeviceError> {
        let mut bytes = Vec::with_capacity(numbers.len() * T::BYTES);
        numbers.iter().for_each(|number| number.put(&mut bytes));
        Ok(Self { memory: device.upload(&bytes)?, len: numbers.len(), holds: PhantomData })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn memory(&self) -> &M {
        &self.memory
    }

    /// Room for `len` numbers: this array, or a larger one in its place, whose
    /// numbers are anything.
    pub(super) fn grow<D: Device<Memory = M>>(&mut self, device: &D, len: usize) -> Result<(), DeviceError> {
        if self.len < len {
            *self = Self::new(device, len)?;
        }
        Ok(())
    }
}

impl<M> Array<M, f32> {
    /// The first `len` numbers, once they are computed.
    pub(super) fn download<D: Device<Memory = M>>(
        &self,
        device: &D,
        len: usize,
    ) -> Result<Vec<f32>, DeviceError> {
        assert!(len <= self.len, "there are {} numbers, not {len}", self.len);
        let mut bytes = vec![0; len * f32::BYTES];
        device.download(&self.memory, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

/// A matrix that is multiplied: floats, or bf16.
pub(super) enum Operand<'a, M> {
    Floats(&'a Array<M, f32>),
    Halves(&'a Array<M, u16>),
}

// Not derived: memory need not be `Copy` for what refers to it to be.
impl<M> Clone for Operand<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Operand<'_, M> {}

impl<M> Operand<'_, M> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Floats(array) => array.len,
            Self::Halves(array) => array.len,
        }
    }

    pub(super) fn memory(&self) -> &M {
        match self {
            Self::Floats(array) => &array.memory,
            Self::Halves(array) => &array.memory,
        }
    }

    /// Whether both can be multiplied with each other.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Floats(_), Self::Floats(_)) | (Self::Halves(_), Self::Halves(_)))
    }
}
