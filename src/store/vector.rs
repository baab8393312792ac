//! One vector: what may be stored, and how.

/// A vector must have the space's size and a direction.
pub(super) fn check_vector(vector: &[f32], dimensions: usize) -> Result<(), String> {
    if vector.len() != dimensions {
        return Err(format!("it has {} numbers, the space has {dimensions}", vector.len()));
    }
    if vector.iter().any(|x| !x.is_finite()) {
        return Err("it holds a number that is not finite".into());
    }
    if vector.iter().all(|x| *x == 0.0) {
        return Err("it is zero".into());
    }
    // Beyond these its square is not a number that 32 bits can hold.
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if !(1e-15..=1e15).contains(&length) {
        return Err(format!("its length is {length:e}"));
    }
    Ok(())
}

/// Scales to length 1; zero stays zero.
pub(super) fn make_unit(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}

/// How vectors are stored: f32, little endian.
pub(super) fn vector_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A stored vector's numbers.
pub(super) fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_were_stored() {
        let vector = [0.0, -1.5, f32::MIN_POSITIVE, 3.0e38];
        assert_eq!(numbers(&vector_bytes(&vector)).collect::<Vec<_>>(), vector);
    }
}
