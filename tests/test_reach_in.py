"""Internals of the PPLs that gs_ppl uses, tested one by one: an upgrade that breaks one fails
here."""

from gs_ppl._shared.wrappers import innermost, is_masked


def test_wrappers_call_themselves_base_dist_mask_and_reinterpreted_batch_ndims(backend):
    mask = backend.array([True, False]) > 0
    law = backend.ppl.distributions.Normal(backend.array([0.0, 0.0]), 1.0)
    masked, event = law.mask(mask), law.to_event(1)
    assert innermost(masked) is law
    assert innermost(event) is law
    assert backend.numpy(masked._mask).tolist() == [True, False]
    assert event.reinterpreted_batch_ndims == 1
    assert is_masked(masked)
    assert not is_masked(event)


def test_expand_of_any_law_keeps_base_dist_or_class(backend):
    law = backend.ppl.distributions.Normal(backend.array(0.0), 1.0)
    assert isinstance(innermost(law.expand((3,))), type(law))
