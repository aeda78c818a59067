// What all attention shaders share: soft-cap, first visible key, and vector access to heads.
// Parameters: scale, window (0: none), cap (0: none). Constants: D head width, D4: D is a multiple of 4.

fn score_of(dot_product: f32) -> f32 {
    let s = dot_product * p.scale;
    if p.cap > 0.0 {
        return p.cap * tanh_safe(s / p.cap);
    }
    return s;
}

// d score / d dot_product, given the score.
fn score_slope(score: f32) -> f32 {
    if p.cap > 0.0 {
        let c = score / p.cap;
        return p.scale * (1.0 - c * c);
    }
    return p.scale;
}

fn first_key(position: u32) -> u32 {
    if p.window > 0u && position + 1u > p.window {
        return position + 1u - p.window;
    }
    return 0u;
}

fn tanh_safe(v: f32) -> f32 {
    let a = abs(v);
    if a < 0.05 {
        let q = v * v;
        return v * (1.0 - q * (1.0 / 3.0 - q * (2.0 / 15.0 - q * (17.0 / 315.0))));
    }
    let e = exp(-2.0 * a);
    return sign(v) * (1.0 - e) / (1.0 + e);
}
