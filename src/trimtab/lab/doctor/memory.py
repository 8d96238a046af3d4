from dataclasses import dataclass
from typing import Any
from torch import nn
from trimtab.lab.doctor.gauge import gauge
from trimtab.lab.doctor.simulate import Batch, simulate
from trimtab.lab.doctor.steps import Stepper
@dataclass
class Planned:
    resting:int; warm:int; probe:int; full:Any; small:Any; merge:Any
def foresee(model, stepper, batch, evaluation, probe):
    g=gauge()
    resting=g.now()
    full=simulate(model,stepper,batch,evaluation)
    small=simulate(model,stepper,probe,probe)
    g.restart()
    model.train()
    opt=stepper.optimizer(model)
    one={k:v[:1] for k,v in probe.items()}
    stepper.loss_of(model,one).backward(); opt.zero_grad()
    warm=g.peak()
    for _ in range(3): stepper.step(model,opt,probe)
    return Planned(resting,warm,g.peak(),full,small,full.merge)
