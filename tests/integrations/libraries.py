"""How each library is set up to run on Ray, quietly: what programs begin with."""

from __future__ import annotations

DASK = """
import dask
import dask.array
import dask.bag
import dask.dataframe
import numpy as np
import pandas as pd
import ray.util.dask
dask.config.set(scheduler=ray.util.dask.ray_dask_get)
"""

DATA = """
import logging
import ray.data
ray.data.DataContext.get_current().enable_progress_bars = False
logging.getLogger("ray.data").setLevel(logging.ERROR)
"""

MODIN = """
import warnings
import modin.config
import modin.pandas as pd
import numpy as np
modin.config.Engine.put("ray")
modin.config.NPartitions.put(2)
warnings.simplefilter("ignore")  # Modin says what it leaves to pandas
"""
