"""RoAd beyond the table: pairs across groups, and what is refused."""

import pytest
import torch
from tests import models

import trimtab

RoadConfig = trimtab.CONFIGS["ROAD"]


def test_pairs_across_the_groups_of_a_convolution_act_and_cannot_be_merged():
    config = RoadConfig(group_size=8, target_modules=["gconv"])
    model = models.shake(trimtab.get_peft_model(models.base("zoo"), config)).eval()
    layer = model.base_model.model.gconv
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(layer(x), layer.site.op(x, *layer.effective()), rtol=1e-4, atol=1e-4)
    with pytest.raises(trimtab.MergeError, match="the merged weight has shape"):
        model.merge_adapter()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 8}, "lin0: `group_size`=8 does not divide the 20 features that are rotated here"),
        ({"group_size": 5}, "RoadConfig: `group_size`=5 must be even and at least 2: a group is made of pairs"),
        ({"group_size": 0}, "`group_size`=0 must be even and at least 2"),
        ({"variant": "road_3"}, "`variant`='road_3' is unknown; choose 'road_1', 'road_2' or 'road_4'"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        trimtab.get_peft_model(models.base("zoo"), RoadConfig(target_modules=["lin0"], **options))
