//! Models of any shape, as somebody could bring them.

mod device;
pub mod made;
mod shapes;

#[test]
fn the_cosine_of_what_has_no_angle_is_the_least_there_is() {
    assert_eq!(super::cosine(&[3.0, 0.0], &[0.5, 0.0]), 1.0);
    assert_eq!(super::cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
    for (a, b) in
        [([0.0, 0.0], [1.0, 0.0]), ([f32::NAN, 1.0], [1.0, 0.0]), ([f32::INFINITY, 1.0], [1.0, 0.0])]
    {
        assert_eq!((super::cosine(&a, &b), super::cosine(&b, &a)), (-1.0, -1.0), "{a:?}");
    }
    assert_eq!(super::cosine(&[1.0], &[1.0, 0.0]), -1.0);
}
