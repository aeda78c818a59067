// Rows that hold data in this run: p.live says which entry of `counts` bounds p.rows (2: none does).
// p.row0 is where a chunk of rows starts (0 but for chunked ops).

fn live_rows() -> u32 {
    if p.live == 2u {
        return p.rows;
    }
    let n = counts[p.live];
    return min(select(n - p.row0, 0u, n < p.row0), p.rows);
}
